"""Histograms: exact counts, within bounds."""

from __future__ import annotations

from proxy.histogram import SECONDS, Histogram


def test_counts_what_does_not_exceed_a_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.cumulated() == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert (histogram.count, histogram.sum) == (5, 7.5)


def test_several_alike() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5, 16)
    assert (histogram.count, histogram.sum) == (16, 8.0)


def test_quantiles() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.quantile(0.5) == 0.0
    for value in (0.5, 1.5, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.quantile(0.25) == 1.0
    assert histogram.quantile(0.5) == 1.5, "halfway through the two between 1 and 2"
    assert histogram.quantile(1.0) == 4.0
    histogram.observe(100.0, 100)
    assert histogram.quantile(0.99) == 4.0, "of what exceeds all bounds, the last bound"


def test_bounds_rise() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))
