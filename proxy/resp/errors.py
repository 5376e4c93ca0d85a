"""The errors of Pannier, in one small tree.

::

    PannierError
    ├── SettingsError        the operator's fault: a wrong option (exit status 2)
    ├── StartupError         the environment's fault: address in use, no redis-server (exit status 1)
    ├── ProtocolError        the client's fault: bytes that are no RESP; answered, then closed
    └── UpstreamError        Redis' or the network's fault; carries the reply text for the client
        ├── UpstreamRefused  Redis answered, and said no (WRONGPASS, maxclients, bad database …)
        ├── UpstreamDesync   Redis sent bytes that are no RESP; the link is dead
        └── UpstreamLost     the connection cannot be made, broke, or went silent
"""

from __future__ import annotations


class PannierError(Exception):
    """Base of every error Pannier raises on purpose."""


class SettingsError(PannierError):
    """A setting is wrong; the text names the option, its value and what would be right."""


class StartupError(PannierError):
    """Pannier cannot start here; the text says what is in the way."""


class ProtocolError(PannierError):
    """A client sent bytes that are no RESP.

    The text is what Redis itself says after ``-ERR Protocol error: `` (networking.c); the connection is
    closed once it is written.
    """

    def reply(self) -> bytes:
        """The error frame to send before closing."""
        line = str(self).replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")
        return b"-ERR Protocol error: " + line + b"\r\n"


class UpstreamError(PannierError):
    """Redis cannot serve a command; `reply` is the error frame the client gets for it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        line = text.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
        self.reply = b"-" + line + b"\r\n"

    def of_unknown_outcome(self) -> UpstreamError:
        """The error for a command that was sent: nobody can tell whether Redis has carried it out."""
        return UpstreamError(f"{self}; outcome unknown: the command may or may not have been carried out")

    def midway(self, done: str) -> UpstreamError:
        """The error for work of many steps, some of which have been carried out."""
        return UpstreamError(f"{self}; stopped before the end: {done}")


class UpstreamRefused(UpstreamError):
    """Redis answered the handshake with an error; the text is Redis' own, code first."""


class UpstreamDesync(UpstreamError):
    """Redis sent bytes that are no RESP: nothing that follows can be trusted."""


class UpstreamLost(UpstreamError):
    """The connection to Redis cannot be made, broke, or went silent."""
