"""The rule `expire`: SET gets a time to live where its client gives it none (Redis docs: SET)."""

from __future__ import annotations

from proxy.tier.policy import Policy

_GIVEN = frozenset({b"EX", b"PX", b"EXAT", b"PXAT", b"KEEPTTL"})
_PLAIN = 3
"""The arguments of a SET without options."""


def expiring(policy: Policy, arguments: list[bytes]) -> list[bytes]:
    """A SET with the time to live that the rule for its key wants; the same list if it wants none."""
    if len(arguments) < _PLAIN or not _GIVEN.isdisjoint([word.upper() for word in arguments[_PLAIN:]]):
        return arguments
    seconds = policy.ruling(arguments[1]).rule.expire
    if seconds is None:
        return arguments
    return [*arguments, b"PX", _milliseconds(seconds)]


def expiring_large(policy: Policy, arguments: list[bytes], count: int) -> list[bytes] | None:
    """The same for the first arguments of a SET of so many whose value is still arriving.

    It becomes a PSETEX, which has its time to live in front of the value. None: more of it has to be known,
    its options or its key.
    """
    if len(arguments) != _PLAIN - 1:
        return None
    seconds = policy.ruling(arguments[1]).rule.expire
    if seconds is None:
        return arguments
    return [b"PSETEX", arguments[1], _milliseconds(seconds)] if count == _PLAIN else None


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % max(1, round(seconds * 1000))
