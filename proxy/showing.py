"""The effective settings as others may see them, passwords masked: `pannier config --json` and /config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from proxy.kinds import MASKED
from proxy.rules_file import rule_fields
from proxy.settings import OPTIONS, Settings
from proxy.tenants import LIMITS, Tenant


def as_json(settings: Settings, origins: Mapping[str, str]) -> str:
    """The effective settings as a text in JSON."""
    return json.dumps(as_fields(settings, origins), indent=2)


def as_fields(settings: Settings, origins: Mapping[str, str]) -> dict[str, Any]:
    """The effective settings for programs: numbers in their unit, addresses as texts; then the tenants.

    No password or token is among them.
    """
    report: dict[str, Any] = {}
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if not isinstance(value, int | float):
            value = items(option.kind.show(value)) if option.kind.many else option.kind.show(value)
        unit = option.kind.unit or None
        report[option.name] = {"value": value, "unit": unit, "origin": origins[option.name]}
    report["rules"] = [rule_fields(rule) for rule in settings.rules]
    report["tenants"] = {tenant.name: tenant_fields(tenant) for tenant in settings.tenants}
    return report


def tenant_fields(tenant: Tenant) -> dict[str, Any]:
    """What may be shown of a tenant; None: not given."""
    return {
        "password": MASKED,
        "namespace": tenant.namespace,
        **{name: getattr(tenant, name) for name in LIMITS},
        "upstream_username": tenant.upstream_username,
        "upstream_password": None if tenant.upstream_password is None else MASKED,
    }


def items(text: str) -> list[str]:
    """What a value of several consists of."""
    return text.split(",") if text else []
