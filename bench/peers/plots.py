"""Plots of the comparison, drawn by matplotlib from its JSON: what is not in there is left out.

Colours are those of Okabe and Ito, which colour-blind people tell apart; hatches and markers do so in grey.
The same JSON makes the same bytes, as long as matplotlib is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.servers import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches of every plot; shown 900 pixels wide, a point of type is 1.4 pixels."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "pannier",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
RANGE = "#444444"
"""The colour of what shows least and greatest over bars."""


@dataclass(frozen=True)
class Look:
    """How somebody is shown in all plots."""

    colour: str
    hatch: str
    marker: str
    line: str
    title: str = ""
    """Where the JSON gives none."""


PANNIER_COLOUR, PANNIER_MARKER = "#D55E00", "o"
LOOKS = {
    "redis": Look("#333333", "", "s", "--", "Redis direct"),
    "pannier": Look(PANNIER_COLOUR, "", PANNIER_MARKER, "-", "Pannier"),
    "compiled": Look("#E69F00", "....", "p", "-", "Pannier, compiled"),
    "envoy": Look("#0072B2", "////", "^", "-", "Envoy"),
    "twemproxy": Look("#009E73", "----", "D", "-.", "twemproxy"),
    "haproxy": Look("#CC79A7", "xxxx", "v", ":", "HAProxy"),
    "lru": Look("#333333", "", "s", "--", "LRU"),
    "sieve": Look("#0072B2", "", "^", "-", "SIEVE"),
    "s3fifo": Look("#009E73", "", "D", "-.", "S3-FIFO"),
    "wtinylfu": Look("#CC79A7", "", "v", ":", "W-TinyLFU"),
    "belady": Look("#999999", "", "*", "--", "Belady (the optimum)"),
}
OTHERS = (Look("#999933", "\\\\\\\\", "P", "-"), Look("#56B4E9", "++++", "X", "--"))
"""For who is not in the table above."""
WORKLOADS = {
    "get-hits": "GET, hits",
    "get-misses": "GET, misses",
    "set": "SET",
    "mix-95-5": "95 % GET, 5 % SET",
    "mix-80-20": "80 % GET, 20 % SET",
    "mget-10": "MGET of 10 keys",
    "mget-100": "MGET of 100 keys",
    "hgetall-20": "HGETALL of 20 fields",
}
POLICIES = ("belady", "wtinylfu", "s3fifo", "sieve", "lru", "pannier")
"""Lines of the hit ratio; the last is drawn over the others."""
PERCENTILES = {"p50": "p50", "p99": "p99", "p999": "p99.9"}
REMOTE_LOADS = {
    "95-5": "95/5",
    "80-20": "80/20",
    "cold": "first reads",
}
GROWING = {
    "keys": "hot keys",
    "value": "bytes of the value",
    "clients": "clients",
    "namespaces": "namespaces",
    "rules": "rules",
}

Rows = dict[tuple[str, ...], dict[str, Any]]
"""Rows by the parts of their names."""
Titles = Mapping[str, str]
"""Of contenders, by name and in the order of legends."""


# --- What the JSON says


def rows_of(section: Mapping[str, Any], parts: int) -> Rows:
    """The rows whose names have so many parts; others are of another kind."""
    found = {tuple(name.split("/")): values for name, values in section.get("rows", {}).items()}
    return {name: values for name, values in found.items() if len(name) == parts}


def having(key: str, rows: Rows) -> Rows:
    """Those that have a figure there."""
    return {name: values for name, values in rows.items() if middle(values.get(key)) is not None}


def middle(value: Any) -> float | None:
    """The median, or the one figure there is."""
    if isinstance(value, Mapping):
        value = value.get("median")
    return float(value) if isinstance(value, int | float) else None


def ends(value: Any) -> tuple[float, float] | None:
    """Least and greatest, where rounds were taken."""
    if isinstance(value, Mapping) and {"min", "max"} <= value.keys():
        return float(value["min"]), float(value["max"])
    return None


def amount(text: str) -> float | None:
    """The number a part of a name begins with: its unit may follow, as in ``0.5ms``."""
    try:
        return float(text.rstrip("abcdefghijklmnopqrstuvwxyz% "))
    except ValueError:
        return None


def in_order(names: Iterable[str]) -> list[str]:
    """Each once, by its number."""
    return sorted(dict.fromkeys(names), key=lambda name: (amount(name) or 0.0, name))


def known_first(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Each once: those known in their order, then the others as they come."""
    present = dict.fromkeys(names)
    first = [name for name in known if name in present]
    return first + [name for name in present if name not in first]


def titles_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Names of contenders as people write them."""
    given = {name: told.get("title") or name for name, told in results.get("contenders", {}).items()}
    return given | {name: look.title for name, look in LOOKS.items() if name not in given}


def look_of(name: str, names: Sequence[str]) -> Look:
    """How to show one of those in a plot."""
    if name in LOOKS:
        return LOOKS[name]
    strangers = [other for other in names if other not in LOOKS]
    return OTHERS[strangers.index(name) % len(OTHERS)]


def lighter(colour: str, part: float = 0.62) -> str:
    """The colour mixed with so much white."""
    shades = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(shade + (255 - shade) * part):02x}" for shade in shades)


# --- Parts of plots


def panels(count: int, columns: int, height: float, title: str, about: str) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, and room for its title above and a legend below."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, count)
    lines = -(-count // columns)
    top, bottom = 0.62, 0.34
    total = lines * height + top + bottom
    inner = (0.0, bottom / total, 1.0, 1.0 - (top + bottom) / total)
    layout = ConstrainedLayoutEngine(rect=inner, h_pad=0.06, w_pad=0.06)
    figure = Figure(figsize=(WIDTH, total), layout=layout)
    figure.text(0.012, 1 - 0.10 / total, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.38 / total, about, fontsize=8.5, color="#555555", va="top")
    cells = [figure.add_subplot(lines, columns, place + 1) for place in range(count)]
    return figure, cells


def legend(figure: Figure, cells: Sequence[Axes], names: Sequence[str], titles: Titles) -> None:
    """One for all panels, at the foot, in the order of the names."""
    found = [pair for cell in cells for pair in zip(*cell.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in reversed(found)}
    labels = [label for name in names if (label := titles.get(name, name)) in handles]
    figure.legend([handles[label] for label in labels], labels, loc="lower center", ncols=len(labels))


def alike(cells: Sequence[Axes]) -> None:
    """Give all panels the same range of values."""
    ranges = [cell.get_ylim() for cell in cells]
    for cell in cells:
        cell.set_ylim(min(low for low, _ in ranges), max(high for _, high in ranges))


def side_by_side(names: Sequence[str]) -> list[tuple[float, float, str]]:
    """Where in a group each bar stands, and how wide it is."""
    width = 0.8 / len(names)
    return [((place - (len(names) - 1) / 2) * width, width * 0.92, name) for place, name in enumerate(names)]


def bar(panel: Axes, x: float, width: float, height: float, look: Look, label: str) -> None:
    """A bar in somebody's colour and hatch."""
    panel.bar(
        x, height, width, color=look.colour, edgecolor="white", hatch=look.hatch, linewidth=0.0, label=label
    )


def crown(panel: Axes, x: float, height: float, value: Any, upright: bool = False) -> None:
    """Over a bar: the least and the greatest of a value, and what the bar comes to."""
    low, high = ends(value) or (height, height)
    if low < high:
        panel.vlines(x, low, high, color=RANGE, linewidth=1.2, zorder=5)
    panel.annotate(
        plain(float(f"{height:.3g}")), (x, max(height, high)), (0, 2.5), textcoords="offset points",
        ha="center", va="bottom", rotation=90 if upright else 0, fontsize=6.5 if upright else 7.5,
        color=RANGE,
    )  # fmt: skip


def curve(panel: Axes, points: Sequence[tuple[float, Any]], look: Look, label: str) -> None:
    """A line with a marker at each value and bars from the least to the greatest."""
    known = [(x, y, ends(value)) for x, value in points if (y := middle(value)) is not None]
    if not known:
        return
    wide = look.marker == PANNIER_MARKER  # beneath the others, so that they show where they meet
    panel.plot(
        [x for x, _, _ in known], [y for _, y, _ in known], label=label, color=look.colour,
        marker=look.marker, linestyle=look.line, linewidth=3.4 if wide else 1.2,
        markersize=6.5 if wide else 4.0, zorder=3 if wide else 4,
    )  # fmt: skip
    for x, _, reach in known:
        if reach and reach[0] < reach[1]:
            panel.plot([x, x], reach, color=look.colour, linewidth=3.0, alpha=0.35, zorder=2)


def columns_at(panel: Axes, labels: Sequence[str], axis: str) -> None:
    """Name the places 0, 1, 2 and so on."""
    panel.set_xticks(range(len(labels)), labels)
    panel.tick_params(axis="x", length=0)
    panel.set_xlabel(axis)


def plain(value: float, _: float | None = None) -> str:
    """A number on an axis, short."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def binary(value: float) -> str:
    """A number of bytes, short."""
    for size, letter in ((1 << 20, " MB"), (1 << 10, " kB")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g} B"


def ticks_at(panel: Axes, places: Sequence[float], axis: str, show: Callable[[float], str] = plain) -> None:
    """A logarithmic axis with ticks where something was measured."""
    from matplotlib.ticker import NullLocator

    panel.set_xscale("log")
    panel.set_xticks(places, [show(place) for place in places])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.tick_params(axis="x", labelsize=7.5)
    panel.set_xlabel(axis)


def log_y(panel: Axes) -> None:
    """A logarithmic axis of values, its ticks written out."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(plain))
    panel.yaxis.set_minor_formatter(NullFormatter())


# --- The plots


def cpu_by_depth(section: Mapping[str, Any], titles: Titles) -> Figure | None:
    """Grouped bars for each workload: own CPU, and lighter on top that of the Redis behind."""
    rows = having("own_us", rows_of(section, 3))
    if not rows:
        return None
    workloads = known_first((name for name, _, _ in rows), WORKLOADS)
    names = known_first((name for _, _, name in rows), titles)
    figure, cells = panels(
        len(workloads), 2, 2.1, "CPU per operation, by pipeline depth",
        "Full tone: the contender itself. Lighter: the Redis behind it. Whiskers: least and greatest total "
        "of the rounds. Less is better.",
    )  # fmt: skip
    for panel, workload in zip(cells, workloads, strict=True):
        mine = {(depth, name): values for (kind, depth, name), values in rows.items() if kind == workload}
        depths = in_order(depth for depth, _ in mine)
        for place, depth in enumerate(depths):
            for offset, width, name in side_by_side(names):
                if values := mine.get((depth, name)):
                    label = titles.get(name, name)
                    stacked_bar(panel, place + offset, width, values, look_of(name, names), label)
        columns_at(panel, depths, "pipeline depth")
        panel.margins(y=0.24)
        panel.set_title(WORKLOADS.get(workload, workload))
        panel.set_ylabel("CPU, µs/operation")
    legend(figure, cells, names, titles)
    return figure


def stacked_bar(
    panel: Axes, x: float, width: float, values: Mapping[str, Any], look: Look, label: str
) -> None:
    """Own CPU, on it what is behind, and the range of both together."""
    own, behind = middle(values.get("own_us")) or 0.0, middle(values.get("behind_us")) or 0.0
    bar(panel, x, width, own, look, label)
    if behind:
        light = lighter(look.colour)
        panel.bar(
            x, behind, width, bottom=own, color=light, edgecolor=look.colour, hatch=look.hatch, linewidth=0.4
        )
    crown(panel, x, own + behind, values.get("total_us"), upright=True)


def latency(section: Mapping[str, Any], titles: Titles) -> Figure | None:
    """A panel for each percentile, a line for each contender over the load."""
    rows = having("p50", rows_of(section, 2))
    if not rows:
        return None
    names = known_first((name for name, _ in rows), titles)
    loads = in_order(load for _, load in rows)
    figure, cells = panels(
        len(PERCENTILES), 3, 3.1, "Latency of GET hits at a constant rate",
        "Each contender at shares of the greatest rate it does itself. Bands: least and greatest of the "
        "rounds. Less is better.",
    )  # fmt: skip
    for panel, (key, title) in zip(cells, PERCENTILES.items(), strict=True):
        for name in names:
            values = [(place, rows.get((name, load), {}).get(key)) for place, load in enumerate(loads)]
            curve(panel, values, look_of(name, names), titles.get(name, name))
        columns_at(panel, [f"{load.rstrip(' %')} %" for load in loads], "load, % of own greatest rate")
        log_y(panel)
        panel.set_title(title)
        panel.set_ylabel("latency, µs (logarithmic)")
        panel.margins(x=0.12)
    alike(cells)
    legend(figure, cells, names, titles)
    return figure


def remote(section: Mapping[str, Any], titles: Titles) -> Figure | None:
    """A panel for each delay, bars with and without the sidecar by the load, if its pace was not given."""
    rows = {
        name: {"per_second": values.get("per_second", values.get("ops_per_second"))}
        for name, values in rows_of(section, 3).items()
        if not name[1].endswith("-open")
    }
    rows = having("per_second", rows)
    if not rows:
        return None
    delays = in_order(delay for delay, _, _ in rows)
    names = known_first((name for _, _, name in rows), titles)
    figure, cells = panels(
        len(delays), 3, 2.7, "Throughput with Redis far away",
        "One connection, one request at a time; first reads: of keys never read before. Whiskers: least and "
        "greatest of the rounds. More is better.",
    )  # fmt: skip
    for panel, delay in zip(cells, delays, strict=True):
        mine = {(load, name): values for (kind, load, name), values in rows.items() if kind == delay}
        loads = known_first((load for load, _ in mine), REMOTE_LOADS)
        for place, load in enumerate(loads):
            for offset, width, name in side_by_side(names):
                value = mine.get((load, name), {}).get("per_second")
                if (height := middle(value)) is not None:
                    bar(panel, place + offset, width, height, look_of(name, names), titles.get(name, name))
                    crown(panel, place + offset, height, value)
        columns_at(panel, [REMOTE_LOADS.get(load, load) for load in loads], "GETs/SETs, % of Zipf keys")
        panel.set_title(f"{amount(delay):g} ms each way")
        panel.set_ylabel("operations/s")
        panel.yaxis.set_major_formatter(plain)
        panel.margins(y=0.1)
    legend(figure, cells, names, titles)
    return figure


def hit_ratio(section: Mapping[str, Any], _: Titles) -> Figure | None:
    """A panel for each stream, a line for each policy over the size of the cache."""
    rows = rows_of(section, 2)
    streams = list(dict.fromkeys(stream for stream, _ in rows))
    if not rows:
        return None
    figure, cells = panels(
        len(streams), 3, 2.5, "Hit ratio of the cache, by its size",
        "Pannier's is measured; the others are simulated on the same reads. More is better.",
    )  # fmt: skip
    for panel, stream in zip(cells, streams, strict=True):
        sizes = in_order(size for kind, size in rows if kind == stream)
        places = [amount(size) or 0.0 for size in sizes]
        for policy in POLICIES:
            values = [rows[stream, size].get(policy) for size in sizes]
            curve(panel, list(zip(places, values, strict=True)), LOOKS[policy], LOOKS[policy].title)
        ticks_at(panel, places, "size, % of the different keys")
        panel.set_title(stream)
        panel.set_ylabel("hits, % of reads")
    legend(figure, cells, POLICIES[::-1], {policy: LOOKS[policy].title for policy in POLICIES})
    return figure


def scaling(section: Mapping[str, Any], titles: Titles) -> Figure | None:
    """A panel for each thing that grows: own CPU over it."""
    rows = having("own_us", rows_of(section, 3))
    if not rows:
        return None
    names = known_first((name for _, _, name in rows), titles)
    kinds = known_first((kind for kind, _, _ in rows), GROWING)
    figure, cells = panels(
        len(kinds), 3, 2.5, "CPU per operation while one thing grows",
        "The contender's own, without the Redis behind it. Bands: least and greatest of the rounds. "
        "Flat is good.",
    )  # fmt: skip
    for panel, kind in zip(cells, kinds, strict=True):
        mine = {(n, name): values for (what, n, name), values in rows.items() if what == kind}
        show = binary if kind == "value" else plain
        own_over_n(panel, mine, names, titles, GROWING.get(kind, kind.replace("-", ", ")), show)
        panel.set_ylim(0.0, 1.05 * panel.get_ylim()[1])
    legend(figure, cells, names, titles)
    return figure


def values(section: Mapping[str, Any], titles: Titles) -> Figure | None:
    """A panel for each depth: own CPU over the size of values, both logarithmic."""
    rows = having("own_us", rows_of(section, 3))
    if not rows:
        return None
    names = known_first((name for _, _, name in rows), titles)
    depths = in_order(depth for _, depth, _ in rows)
    figure, cells = panels(
        len(depths), 2, 3.0, "CPU per GET hit, by the size of the value",
        "The contender's own, without the Redis behind it. Bands: least and greatest of the rounds. "
        "Less is better.",
    )  # fmt: skip
    for panel, depth in zip(cells, depths, strict=True):
        mine = {(size, name): values for (size, kind, name), values in rows.items() if kind == depth}
        own_over_n(panel, mine, names, titles, "bytes of the value", binary)
        log_y(panel)
        panel.set_title(f"pipeline depth {depth}")
        panel.set_ylabel("own CPU, µs/operation (logarithmic)")
    legend(figure, cells, names, titles)
    return figure


def own_over_n(
    panel: Axes,
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
    names: Sequence[str],
    titles: Titles,
    what: str,
    show: Callable[[float], str],
) -> None:
    """A line for each contender of its own CPU, over a number on a logarithmic axis."""
    places = [(n, x) for n in in_order(n for n, _ in rows) if (x := amount(n)) is not None and x > 0]
    for name in names:
        points = [(x, rows.get((n, name), {}).get("own_us")) for n, x in places]
        curve(panel, points, look_of(name, names), titles.get(name, name))
    ticks_at(panel, [x for _, x in places], f"{what} (logarithmic)", show)
    panel.set_title(what)
    panel.set_ylabel("own CPU, µs/operation")


PLOTS: dict[str, tuple[str, Callable[[Mapping[str, Any], Titles], Figure | None]]] = {
    "cpu-by-depth.svg": ("commands", cpu_by_depth),
    "latency.svg": ("latency", latency),
    "remote.svg": ("remote", remote),
    "hit-ratio.svg": ("hit-ratio", hit_ratio),
    "scaling.svg": ("scaling", scaling),
    "values.svg": ("values", values),
}
"""Each file, the section it shows, and what draws it; None where the section has nothing to show."""


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write a plot for each section that has one; raises BenchError if matplotlib is not there."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise BenchError("the Python package matplotlib is not installed") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(STYLE):
        for file, (section, plot) in PLOTS.items():
            found = results.get("sections", {}).get(section)
            if found and (figure := plot(found, titles_of(results))):
                figure.savefig(folder / file, format="svg", metadata={"Date": None})
                written.append(folder / file)
    return written
