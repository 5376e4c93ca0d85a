"""Cache rules as they stand in TOML: tables `[[rules]]`, in the file of the settings or one of their own.

`read_rules` makes `CacheRule` objects of them, in their order; what is wrong raises SettingsError with the
place, the value and what would be right. `FIELDS` says what a rule may hold; docs/settings.md is made of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxy.kinds import (
    Kind,
    Wrong,
    choice,
    count,
    did_you_mean,
    duration,
    misfit,
    noting,
    share,
    show_duration,
    size,
    switch,
    toml_text,
)
from proxy.resp.errors import SettingsError
from proxy.tier.policy import CacheRule, Serve
from proxy.upstream.address import shown

_LONGEST = 1 << 16
"""Bytes of all patterns together: they become one regular expression."""


def _label() -> Kind[str]:
    def parse(text: str) -> str:
        if not re.fullmatch(r"[\w.:-]{1,64}", text):
            raise ValueError(
                f"{shown(text)} is no name for a class; give 1 to 64 letters, digits or any of _.:-"
            )
        return text

    return Kind(parse, str, "NAME", "1 to 64 letters, digits or any of `_.:-`")


_BARE = re.compile(r"true|false|[0-9]+(\.[0-9]{1,4})?")
"""Values that TOML gives back as they are without quotes."""
_YEAR = 365 * 86400
FIELDS: Mapping[str, tuple[Kind[Any], str, str]] = {
    "mode": (
        choice("cache", "observe", "off"),
        "serve",
        "cache: what is read is kept. observe: all is served by Redis, and reported is what memory would "
        "have done. off: neither. The setting mode is the most that a rule can allow.",
    ),
    "cache": (switch(), "serve", "`false` is mode off, `true` mode cache."),
    "l1_ttl": (
        duration(0.01, _YEAR),
        "l1_ttl",
        "Longest time an entry is served from memory, instead of the setting's; the key's own TTL always "
        "counts as well.",
    ),
    "jitter": (
        share(),
        "jitter",
        "How much of l1_ttl chance takes away at most, so that what was read at once does not end at once "
        "(0.1).",
    ),
    "max_value_size": (size(16, 512 << 20), "max_value_size", "Longest reply that is kept."),
    "negative": (switch(), "negative", "Whether it is kept that a key or a field is not there (true)."),
    "expire": (
        duration(0.001, 100 * _YEAR),
        "expire",
        "The time to live that SET gets where the client gives none.",
    ),
    "stale_while_revalidate": (
        duration(0, _YEAR),
        "stale_while_revalidate",
        "How long beyond l1_ttl an entry still answers, while it is fetched anew.",
    ),
    "stale_if_error": (
        duration(0, _YEAR),
        "stale_if_error",
        "How long beyond l1_ttl, or after Redis was lost, an entry answers where Redis cannot.",
    ),
    "refresh_ahead": (
        duration(0, _YEAR),
        "refresh_ahead",
        "How long before the end of l1_ttl an entry that is read often is fetched anew.",
    ),
    "max_fetches": (
        count(1, 1_000_000, "fetches"),
        "max_fetches",
        "Fetches of this class under way at once after much has been dropped.",
    ),
    "class": (_label(), "label", "What statistics call it, instead of the first part of the key."),
}
"""The keys of a table beside `match`: what each accepts, the field of `CacheRule` it sets, what it is for."""
MATCH = (
    "a glob or a list of them",
    "Keys, as clients name them; as for KEYS: `user:*`, `user:?:name`, `*:[0-9]`. Required.",
)


def read_rules_file(path: str, written: str, wrong: Wrong = None) -> tuple[CacheRule, ...]:
    """Read a file of rules; `written` is how its author named it. Raises SettingsError, or puts one for each
    rule into `wrong`."""
    with noting(wrong):
        return read_rules(_read_toml(path, written).get("rules", []), f"{path}:rules", wrong)
    return ()


def _read_toml(path: str, written: str) -> dict[str, Any]:
    import tomllib  # most of a MB that a sidecar without a file does without

    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{written}: {shown(path)} cannot be read ({error.strerror}); give a TOML file of rules"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{written}: {shown(path)} is not valid TOML ({error}); mend the file") from None
    for key in table:
        if key != "rules":
            raise SettingsError(
                f"{path}:{key}: no such key; a file of rules holds tables [[rules]] and nothing else"
            )
    return table


def read_rules(tables: Any, written: str, wrong: Wrong = None) -> tuple[CacheRule, ...]:
    """Read the tables of a file, in their order; `written` is where they stand. Raises SettingsError, or puts
    one for each rule into `wrong`."""
    rules: list[CacheRule] = []
    with noting(wrong):
        if not isinstance(tables, list):
            raise misfit(written, tables, "tables, such as [[rules]]")
        for number, table in enumerate(tables, 1):
            with noting(wrong):
                rules.append(_read_rule(table, f"{written} #{number}"))
        if sum(len(pattern) for rule in rules for pattern in rule.patterns) > _LONGEST:
            raise SettingsError(
                f"{written}: the patterns of all rules come to more than {_LONGEST} bytes; use fewer"
            )
    return tuple(rules)


def _read_rule(table: Any, written: str) -> CacheRule:
    if not isinstance(table, Mapping):
        raise misfit(written, table, "a table, such as [[rules]]")
    for key in table:
        if key not in FIELDS and key != "match":
            advice = did_you_mean(key, [*FIELDS, "match"], otherwise=f"known are match, {', '.join(FIELDS)}")
            raise SettingsError(f"{written}.{key}: no such key; {advice}")
    if "mode" in table and "cache" in table:
        raise SettingsError(f"{written}: mode and cache are given; give one of them")
    fields = {
        field: _value(f"{written}.{key}", key, kind, table[key])
        for key, (kind, field, _) in FIELDS.items()
        if key in table
    }
    rule = CacheRule(_patterns(table, written), **fields, written=written)
    if rule.l1_ttl is not None and 0 < rule.l1_ttl <= rule.refresh_ahead:
        raise SettingsError(
            f"{written}.refresh_ahead: {shown(str(table['refresh_ahead']))} is not before the end of l1_ttl, "
            f"{show_duration(rule.l1_ttl)}; give less"
        )
    return rule


def _patterns(table: Mapping[str, Any], written: str) -> tuple[bytes, ...]:
    if "match" not in table:
        raise SettingsError(f'{written}: no match; say which keys are meant, such as match = "user:*"')
    given = table["match"]
    patterns = [given] if isinstance(given, str) else given
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise misfit(f"{written}.match", given, "a text or a list of texts")
    if not patterns or not all(patterns):
        raise SettingsError(f'{written}.match: an empty pattern matches no key; give one such as "user:*"')
    return tuple(pattern.encode() for pattern in patterns)


def _value(written: str, key: str, kind: Kind[Any], value: object) -> Any:
    try:
        parsed = kind.parse(toml_text(written, value))
    except ValueError as error:
        raise SettingsError(f"{written}: {error}") from None
    if key == "mode":
        return Serve[parsed.upper()]
    if key == "cache":
        return Serve.CACHE if parsed else Serve.OFF
    return parsed


def rule_fields(rule: CacheRule) -> dict[str, Any]:
    """What a rule says, by key: values as texts, patterns as a list."""
    fields: dict[str, Any] = {"match": [pattern.decode() for pattern in rule.patterns]}
    plain = CacheRule(())
    for key, (kind, field, _) in FIELDS.items():
        value = getattr(rule, field)
        if key != "cache" and value != getattr(plain, field):
            fields[key] = value.name.lower() if key == "mode" else kind.show(value)
    return fields


def show_rule(rule: CacheRule) -> list[str]:
    """A rule as lines of TOML, without the head of its table."""
    lines = []
    for key, value in rule_fields(rule).items():
        bare = key != "class" and isinstance(value, str) and _BARE.fullmatch(value)
        quoted = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{key} = {value if bare else quoted}")
    return lines
