"""/metrics: the figures in Prometheus' formats.

`Collector` is what prometheus-client calls one; nothing is counted in its own objects. Whatever is exported
is read at one moment, and put into text a few families at a time, so that hits go on in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from proxy.histogram import Histogram
from proxy.observe.answers import Answer
from proxy.observe.families import FAMILIES, Family
from proxy.observe.http import Request
from proxy.observe.sources import Sources

_SLICE = 8
"""Families put into text without a pause: a quarter of a millisecond, more where there are many tenants."""
_END = b"# EOF\n"
"""How a text of OpenMetrics ends."""


class Collector:
    """Reads all figures of a sidecar; may be registered with a registry of prometheus-client's."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def collect(self) -> Iterator[Metric]:
        """Every family with its figures now."""
        for family in FAMILIES:
            yield metric(family, self._sources)
        yield from self._process.collect()

    async def answer(self, request: Request) -> Answer:
        """Answer GET /metrics, in OpenMetrics' format if that is wanted."""
        clients = self._sources.clients
        await clients.volume.look_at(clients.sessions.values())
        encode, kind = choose_encoder(request.fields.get("accept", ""))
        metrics = list(self.collect())
        texts = []
        for start in range(0, len(metrics), _SLICE):
            texts.append(encode(_Some(metrics[start : start + _SLICE])).removesuffix(_END))
            await asyncio.sleep(0)
        if "openmetrics" in kind:
            texts.append(_END)
        return Answer(b"".join(texts), kind=kind)


class _Some(CollectorRegistry):
    """Some metrics, as an encoder takes them."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Those."""
        return self._metrics


def metric(family: Family, sources: Sources) -> Metric:
    """A family as prometheus-client has it, with its figures now."""
    made: Metric
    if family.kind == "info":
        made = info = InfoMetricFamily(family.name, family.help)
        for values, _ in family.read(sources):
            info.add_metric((), dict(zip(family.labels, values, strict=True)))
        return made
    if family.kind == "histogram":
        made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for values, figure in family.read(sources):
            if isinstance(figure, Histogram):
                buckets = [(_bound(bound), float(count)) for bound, count in figure.cumulated()]
                made.add_metric(values, buckets, figure.sum)
        return made
    maker = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = single = maker(family.name, family.help, labels=family.labels)
    for values, figure in family.read(sources):
        if not isinstance(figure, Histogram):
            single.add_metric(values, float(figure))
    return made


def _bound(bound: float) -> str:
    """A histogram's bound as the format has it."""
    return "+Inf" if bound == float("inf") else repr(bound)
