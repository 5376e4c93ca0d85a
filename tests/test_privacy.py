"""Names of keys are shown as the setting says, and in no other way."""

from __future__ import annotations

import re

from proxy.privacy import KeyPrivacy, Privacy


def test_plain_shows_the_name() -> None:
    assert Privacy().shown(b"user:42") == "user:42"
    assert Privacy().shown("größe".encode()) == "größe"
    assert Privacy().shown(b"\xff\n") == "\\xff\n"


def test_long_names_are_cut() -> None:
    shown = Privacy().shown(b"x" * 10_000_000)
    assert len(shown) == 120 and shown.endswith("x…")


def test_hashed_shows_the_same_for_the_same_name_and_nothing_of_it() -> None:
    privacy = Privacy(KeyPrivacy.HASHED)
    shown = privacy.shown(b"user:42")
    assert re.fullmatch("[0-9a-f]{12}", shown)
    assert shown == privacy.shown(b"user:42") != privacy.shown(b"user:43")


def test_hashes_cannot_be_tried_out_without_the_secret() -> None:
    assert Privacy(KeyPrivacy.HASHED).shown(b"user:42") != Privacy(KeyPrivacy.HASHED).shown(b"user:42")
    one, other = (Privacy(KeyPrivacy.HASHED, b"secret") for _ in range(2))
    assert one.shown(b"user:42") == other.shown(b"user:42")


def test_off_shows_nothing() -> None:
    privacy = Privacy(KeyPrivacy.OFF)
    assert privacy.shown(b"user:42") == "" and not privacy.plain
