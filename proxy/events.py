"""What a line of the log says to programs, beside the text for people.

Every message of Pannier's has the name of its event and some fields: `log.info(text, extra=fields("event",
address=...))`. `docs/logging.md` lists them all; a test compares. A message, like its fields, holds no
value and no password; where it holds the name of a key, that went through `proxy.privacy` first.
"""

from __future__ import annotations


def fields(event: str, **values: object) -> dict[str, object]:
    """The `extra` of a call of a logger: one attribute each for the event and its fields, so that no name of
    a field can be one that records have already."""
    return {"event": event, "fields": values}


def without_arguments(error: str) -> str:
    """An error of Redis' without what it quotes of the command: that may be a key, a value, a password."""
    return error.partition(", with args beginning with")[0]
