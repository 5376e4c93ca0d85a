"""Writes docs/metrics.md: ``python -m proxy.tools.metrics_reference > docs/metrics.md``. A test compares."""

from __future__ import annotations

import textwrap

from proxy.observe.families import FAMILIES, Family
from proxy.observe.metrics import PROCESS
from proxy.observe.together import PARENT

_PREFACE = """
    # Metrics

    <!-- Written by `python -m proxy.tools.metrics_reference`; a test compares. Edit proxy/observe/. -->

    `GET /metrics` on the [administration's](admin.md) address, `http://127.0.0.1:9464/metrics` by default, in
    Prometheus' text format, or in OpenMetrics' if the request's `Accept` asks for that.

    - All figures are read at the moment of the scrape, from where they are kept anyway; hits and misses,
      their sums by namespace and everything else that is not said to be an estimate are exact.
    - Times are in seconds, sizes in bytes. Counters begin anew when Pannier does.
    - No key is ever the value of a label. `namespace` is the name of a namespace, or of a tenant where there
      are tenants; empty for who has none. `class` has at most 33 values for each namespace.
    - Families whose part of Pannier is switched off (the eviction bus, the canary) are there without a value.
"""

_EXAMPLES = """
    ## Some queries

    Hit rate by namespace over five minutes:

    ```promql
    sum by (namespace) (rate(pannier_hits_total[5m]))
      / sum by (namespace) (rate({__name__=~"pannier_(hits|misses)_total"}[5m]))
    ```

    Calls that Redis was spared, each second:

    ```promql
    sum(rate(pannier_hits_total[5m])) + sum(rate(pannier_coalesced_reads_total[5m]))
    ```

    How old what is served may be, for 99 % of the measurements:

    ```promql
    histogram_quantile(0.99, sum by (le) (rate(pannier_invalidation_lag_seconds_bucket[10m])))
    ```
"""

_OTHERS = """
    ## The process

    prometheus-client's own, as in any Python program:

    | Metric | Type | Labels | Meaning |
    |---|---|---|---|
    | `process_virtual_memory_bytes` | gauge | | Virtual memory. |
    | `process_resident_memory_bytes` | gauge | | Memory in RAM. |
    | `process_start_time_seconds` | gauge | | When the process began, in seconds since 1970. |
    | `process_cpu_seconds_total` | counter | | User and system time. |
    | `process_open_fds` | gauge | | File descriptors in use. |
    | `process_max_fds` | gauge | | How many there may be. |
    | `python_info` | gauge | `implementation`, `major`, `minor`, `patchlevel`, `version` | The interpreter. |
    | `python_gc_objects_collected_total` | counter | `generation` | Objects that garbage collection freed. |
    | `python_gc_objects_uncollectable_total` | counter | `generation` | Objects that it could not free. |
    | `python_gc_collections_total` | counter | `generation` | How often it ran. |
"""


_WORKERS = """
    ## Several workers

    With [workers](workers.md) above 1, samples with the same labels are added up, buckets of histograms
    too. But of these

    BY_RULE

    `GET /metrics?worker=2` has one worker's, as they are. Their parent, which is not counted among the
    processes, has metrics of its own:

    OWN
"""

_RULES = {
    "max": "the greatest is shown, so that 1 means that some worker says so",
    "min": "the least is shown, so that 1 means that all say so",
    "each": "those of all are there",
}


def _workers() -> str:
    """What becomes of metrics where there are several workers."""
    found = [(family.shown, family.merge) for family in FAMILIES] + [*PROCESS.items()]
    lines = []
    for how, meaning in _RULES.items():
        names = ", ".join([f"`{name}`" for name, merge in found if merge == how])
        lines.append(f"- {meaning}: {names}")
    own = []
    for name, (kind, help, labels) in PARENT.items():
        label = "{" + ",".join(labels) + "}" if labels else ""
        own.append(f"- `{name}{'_total' if kind == 'counter' else ''}{label}`: {help}")
    text = textwrap.dedent(_WORKERS).strip()
    return text.replace("BY_RULE", "\n".join(lines)).replace("OWN", "\n".join(own))


def markdown() -> str:
    """The text of docs/metrics.md."""
    head = "| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n"
    parts = [textwrap.dedent(_PREFACE).strip()]
    for group in dict.fromkeys(family.group for family in FAMILIES):
        rows = [_row(family) for family in FAMILIES if family.group == group]
        parts.append(f"## {group}\n\n{head}" + "\n".join(rows))
    parts += [textwrap.dedent(_OTHERS).strip(), _workers(), textwrap.dedent(_EXAMPLES).strip()]
    return "\n\n".join(parts) + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.shown}` | {family.kind} | {labels} | {family.help} |"


if __name__ == "__main__":
    print(markdown(), end="")
