"""How names of keys are shown: in SIDECAR HOTKEYS and its like, over HTTP, in logs.

Names of keys often hold names of people. `key_privacy` says what an operator's tools may see of them:

- `plain`: the name.
- `hashed`: twelve hexadecimal digits, the same for the same name until Pannier stops, so that two lists can
  be compared; the secret behind them is drawn anew at each start, so that names cannot be tried out.
- `off`: nothing.
"""

from __future__ import annotations

import enum
import hashlib
import os

_DIGEST = 6
"""Bytes of a hash: among a million keys, two are alike with a chance of one in 500."""
_LONGEST = 120
"""Characters of a name that are shown."""


class KeyPrivacy(enum.Enum):
    """The values of the setting."""

    PLAIN = "plain"
    HASHED = "hashed"
    OFF = "off"


class Privacy:
    """Shows names of keys. `secret` is for tests; else it is random."""

    def __init__(self, how: KeyPrivacy = KeyPrivacy.PLAIN, secret: bytes | None = None) -> None:
        self.how = how
        self._secret = os.urandom(16) if secret is None else secret

    @property
    def plain(self) -> bool:
        """Whether names, and what is derived from them, may be seen."""
        return self.how is KeyPrivacy.PLAIN

    def shown(self, key: bytes) -> str:
        """What may be shown of a key's name; empty: nothing."""
        if self.how is KeyPrivacy.OFF:
            return ""
        if self.how is KeyPrivacy.HASHED:
            return hashlib.blake2b(key, key=self._secret, digest_size=_DIGEST).hexdigest()
        text = key[: 4 * _LONGEST].decode("utf-8", "backslashreplace")
        return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
