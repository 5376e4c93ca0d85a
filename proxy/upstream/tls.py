"""TLS towards Redis: the context of a `rediss://` URL, and what went wrong in plain words."""

from __future__ import annotations

import logging
import ssl
from typing import NamedTuple

from proxy.certificates import VERSIONS, Stamp, load_authorities, load_own, reason_of, stamps
from proxy.events import fields
from proxy.resp.errors import SettingsError
from proxy.upstream.address import Upstream

log = logging.getLogger("pannier.upstream")

TLS_FIRST = (b"\x15\x03", b"\x16\x03")
"""How an alert of TLS begins, and a handshake: what a server says that speaks nothing else."""


class _Made(NamedTuple):
    stamps: list[Stamp]
    """Of the files when it was made."""
    context: ssl.SSLContext


_contexts: dict[Upstream, _Made] = {}


def tls_context(upstream: Upstream) -> ssl.SSLContext:
    """The context for the next connection: certificates are verified unless the URL says otherwise.

    Kept as long as its files are as they were: reading the system's authorities takes milliseconds. Files
    that have become wrong leave the old context in use. Raises SettingsError if there is none yet.
    """
    seen = stamps([upstream.ssl_ca_certs, upstream.ssl_certfile, upstream.ssl_keyfile])
    made = _contexts.get(upstream)
    if made is None or made.stamps != seen:
        try:
            context = _make(upstream)
        except SettingsError as error:
            problem = f"upstream {upstream.redacted}: {error}"
            if made is None:
                raise SettingsError(problem) from None
            about = fields("upstream_tls_broken", upstream=upstream.redacted, reason=str(error))
            log.error("%s; the old files stay in use", problem, extra=about)
            context = made.context
        made = _contexts[upstream] = _Made(seen, context)
    return made.context


def _make(upstream: Upstream) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = VERSIONS[upstream.ssl_min_version]
    context.check_hostname = upstream.ssl_check_hostname and upstream.ssl_cert_reqs != "none"
    if upstream.ssl_cert_reqs == "none":
        context.verify_mode = ssl.CERT_NONE
    if upstream.ssl_ca_certs:
        load_authorities(context, "ssl_ca_certs", upstream.ssl_ca_certs)
    else:
        context.load_default_certs()
    if upstream.ssl_certfile:
        key = upstream.ssl_keyfile or ""
        load_own(context, "ssl_certfile", upstream.ssl_certfile, "ssl_keyfile", key)
    return context


_NAMES = (62, 63, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and its like for e-mail and IP addresses."""
_AUTHORITY = (2, 18, 19, 20, 21)
"""X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, DEPTH_ZERO_SELF_SIGNED_CERT and the like."""
_TIME = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID, CERT_HAS_EXPIRED."""


def explain(error: BaseException | None, upstream: Upstream) -> str:
    """What an error of TLS means and what to do, as the predicate of a sentence about `upstream`; empty if it
    is no such error.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrusted(error, upstream)
    if not isinstance(error, ssl.SSLError):
        return ""
    reason = getattr(error, "reason", None) or ""
    said = reason_of(error)
    if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return "does not speak TLS there; name its TLS port, or write redis:// instead of rediss://"
    if "VERSION" in reason or reason in ("UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
        return f"speaks no version of TLS from {upstream.ssl_min_version} on ({said}); see ssl_min_version"
    lacking = reason.endswith("HANDSHAKE_FAILURE") and not upstream.ssl_certfile  # TLS 1.2 says no more
    if lacking or "CERTIFICATE_REQUIRED" in reason:
        return f"wants a certificate of ours ({said}); name it with ssl_certfile and ssl_keyfile"
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return f"does not accept our certificate ({said}); give another one with ssl_certfile"
    if reason == "UNEXPECTED_EOF_WHILE_READING":
        return "closed the connection in the middle of TLS; does it speak that there?"
    return f"broke off TLS: {said}"


def _distrusted(error: ssl.SSLCertVerificationError, upstream: Upstream) -> str:
    said, code = error.verify_message.rstrip("."), error.verify_code
    if code in _NAMES:
        return (
            f"shows a certificate for other names than {upstream.tls_name} ({said}); connect by a name that "
            "it has, give one with ssl_sni, or have none checked with ssl_check_hostname=false"
        )
    if code in _AUTHORITY:
        advice = "ssl_ca_certs names others" if upstream.ssl_ca_certs else "name its file with ssl_ca_certs"
        return f"shows a certificate of an authority that is not trusted here ({said}); {advice}"
    if code in _TIME:
        return f"shows a certificate that is not valid now ({said}); renew it there, or set the clock here"
    return f"shows a certificate that is not accepted ({said})"
