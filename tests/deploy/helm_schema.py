"""Writes the schema of the chart's values, since its settings are Pannier's:

    python -m tests.deploy.helm_schema > deploy/helm/pannier/values.schema.json
"""

from __future__ import annotations

import json
from typing import Any

from proxy.kinds import SECRET
from proxy.settings import OPTIONS

Schema = dict[str, Any]
NOT_THERE = {"listen", "admin_listen"}
"""They follow from the chart's ports."""


def schema() -> Schema:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart of Pannier",
        **closed(
            kind={"enum": ["Deployment", "DaemonSet"]},
            replicas=whole(1, 1000),
            image=closed(
                repository=text(1),
                tag=text(),
                digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
                pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            ),
            imagePullSecrets=listed(closed(name=text(1))),
            settings=closed(**settings()),
            upstreamSecret=closed(name=text(), key=text(1)),
            configSecret=closed(name=text()),
            # `config` is what configSecret is mounted as.
            fileSecrets={**listed({**named(), "not": {"const": "config"}}), "uniqueItems": True},
            extraEnv=listed({**closed(name=text(1), value=text(), valueFrom={"type": "object"}), "required": ["name"]}),
            ports=closed(redis=whole(1024, 65535), admin=whole(1024, 65535)),
            resources={"type": "object"},
            terminationGracePeriodSeconds=whole(0, 86400),
            networkPolicy=closed(
                enabled={"type": "boolean"},
                clientLabels=labels(),
                monitoringNamespace=text(1),
                redisLabels={**labels(), "type": ["object", "null"]},
                redisPort=whole(0, 65535),
            ),
            podDisruptionBudget=closed(enabled={"type": "boolean"}, minAvailable=whole(0, 1000)),
            podMonitor=closed(
                enabled={"type": "boolean"},
                interval={"type": "string", "pattern": "^[1-9][0-9]*[smh]$"},
                tokenSecret=closed(name=text(), key=text(1)),
                tlsConfig={"type": "object"},
            ),
            nodeSelector=labels(),
            tolerations=listed({"type": "object"}),
        ),
        # What Helm itself puts among the values of a chart that is part of another.
        "patternProperties": {"^global$": {"type": "object"}},
    }


def settings() -> dict[str, Schema]:
    """Texts, for Helm would write a large number as 1e+09. Not those that are secret: they are no ConfigMap's."""
    described = {option.name: option.help for option in OPTIONS if option.kind is not SECRET}
    return {
        name: {"type": "string", "description": help}
        for name, help in sorted(described.items())
        if name not in NOT_THERE
    }


def closed(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def text(least: int = 0) -> Schema:
    return {"type": "string", "minLength": least}


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def named() -> Schema:
    """What the name of a Secret may be."""
    return {"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}


def labels() -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string"}}


def as_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(as_text(), end="")
