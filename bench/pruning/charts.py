"""How much of the gap to dense a preset closes, against minutes and tokens; and what is lost, against bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import cycle
from statistics import fmean
from typing import Any, NamedTuple

from markupsafe import Markup

from twofour.bench.pruning.presets import calibration_name, is_plain, with_gaps
from twofour.bench.report.scatter import Axis, Place, scatter
from twofour.prune.errors import InputError
from twofour.prune.label.charts import AXIS, LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, level, svg, ticks, value_axis

_LINES = ("sparse", "dense", "torch_dense", "fourth", "fifth", "sixth")  # the looks of lines in turn
KL = "KL to dense, nats per token"
_LEGEND_ROW = 18  # a name of any length on each


class Point(NamedTuple):
    """A named place in two dimensions."""

    x: float
    y: float
    name: str


def minutes_chart(results: dict[str, Any]) -> Markup:
    """GC against minutes, a line for each calibration text through the means of its presets over seeds."""
    runs = [run for run in with_gaps(results)["runs"] if is_plain(run) and run["gc"] is not None]
    texts = dict.fromkeys(_text(run, results["about"]) for run in runs)
    same = {text: [run for run in runs if _text(run, results["about"]) == text] for text in texts}
    lines = {text: _means(each, "preset", lambda run: run["minutes"]) for text, each in same.items()}
    about = f"Mean over seeds, judged on a text that no calibration saw; {results['about']['model']}."
    return track("Share of the gap to dense that is closed, against minutes", about, lines, ("minutes", "gap closed"))


def tokens_chart(results: dict[str, Any]) -> Markup:
    """GC against the tokens of the text, a line for each source and preset with several amounts, means over seeds.

    Raises InputError where there is no such line.
    """
    runs = [run for run in with_gaps(results)["runs"] if is_plain(run) and run["gc"]]
    kinds = dict.fromkeys((calibration_name(run), run["preset"]) for run in runs)
    same = {kind: [run for run in runs if (calibration_name(run), run["preset"]) == kind] for kind in kinds}
    thousands = results["about"]["length"] / 1000
    lines = {kind: _means(each, "samples", lambda run: run["samples"] * thousands) for kind, each in same.items()}
    curves = {
        f"{preset}, {source}": [point._replace(name="") for point in line]
        for (source, preset), line in lines.items()
        if len(line) > 1
    }
    if not curves:
        raise InputError("no preset was run with several amounts of one text; give bench pruning other --samples, too")
    about = f"Against fast with as much of the same text; {results['about']['model']}."
    units = ("thousand tokens", "gap closed")
    return track("Share of the gap to dense that is closed, against tokens", about, curves, units)


def bytes_chart(results: dict[str, Any]) -> Markup:
    """KL to dense against the bytes of the linears, means over seeds: of every run, and of what was judged beside them.

    Raises InputError where the bytes of fewer than two are known.
    """
    model = results["about"]["model"]
    runs = [run for run in results["runs"] if run.get("linear_bytes")]
    names = list(dict.fromkeys(_stored(run, runs) for run in runs))
    same = {name: [run for run in runs if _stored(run, runs) == name] for name in names}
    places = [_place(arm["name"], arm["kind"], [arm]) for arm in results.get("arms", [])]
    places += [_place(name, "mixture" if each[0].get("budget") else "sparse", each) for name, each in same.items()]
    if len(places) < 2:
        raise InputError("the bytes of fewer than two are known; run bench pruning with --rivals into the same --out")
    about = f"Means over seeds, judged on {results['about']['text']}; {model}."
    return scatter("Loss against bytes", about, places, Axis("bytes of the linears, dense being 1"), KL)


def _stored(run: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """How a run's linears are stored; with its preset and text, where runs differ in them."""
    budget = run.get("budget")
    stored = f"{budget:g}" if budget else "2:4 int8" if run["values"] == "int8" else "2:4"
    told = [run["preset"]] if len({each["preset"] for each in runs}) > 1 else []
    told += [_text_name(run)] if len({_text_name(each) for each in runs}) > 1 else []
    return ", ".join([stored, *told])


def _text_name(run: dict[str, Any]) -> str:
    return f"{calibration_name(run)} x {run['samples']}"


def _place(name: str, kind: str, judged: list[dict[str, Any]]) -> Place:
    share = fmean(each["linear_bytes"] / each["dense_linear_bytes"] for each in judged)
    return Place(name, share, fmean(each["kl_nats"] for each in judged), kind)


def _text(run: dict[str, Any], about: dict[str, Any]) -> str:
    return f"{calibration_name(run)}, {run['samples']} x {about['length']}"


def _means(runs: list[dict[str, Any]], by: str, x: Callable[[dict[str, Any]], float]) -> list[Point]:
    """The mean GC of the runs that have the same `by`, in the order of x, which is a mean, too."""
    kinds = dict.fromkeys(run[by] for run in runs)
    same = {kind: [run for run in runs if run[by] == kind] for kind in kinds}
    return sorted(
        Point(fmean(map(x, each)), fmean(run["gc"] for run in each), str(kind)) for kind, each in same.items()
    )


def track(title: str, description: str, lines: Mapping[str, Sequence[Point]], units: tuple[str, str]) -> Markup:
    """Named points joined to lines; both axes reach down to 0 or below."""
    points = [point for line in lines.values() for point in line]
    steps = [ticks(min(0, *values), max(values)) for values in ([p.x for p in points], [p.y for p in points])]
    x = Scale(steps[0][0], steps[0][-1], LEFT, WIDTH - RIGHT)
    y = Scale(steps[1][0], steps[1][-1], TOP + PLOT_HEIGHT, TOP)
    parts = [part for step in steps[1] for part in level(y.at(step), f"{step:g}")]
    parts += value_axis(x, steps[0], units[0])
    parts.append(f'<text class="tick" x="{LEFT}" y="{TOP - 2}">{escape(units[1])}</text>')
    bottom = TOP + PLOT_HEIGHT + AXIS
    for number, ((name, line), style) in enumerate(zip(lines.items(), cycle(_LINES), strict=False)):
        row = bottom + 8 + number * _LEGEND_ROW
        parts += _line(line, style, x, y)
        parts.append(f'<path class="curve {style}" d="M{LEFT},{row} L{LEFT + 26},{row}"/>')
        parts.append(f'<text x="{LEFT + 32}" y="{row + 4}">{escape(name)}</text>')
    return svg(title, description, bottom + _LEGEND_ROW * len(lines) + 2, [*parts, *_names(points, x, y)])


def _line(line: Sequence[Point], style: str, x: Scale, y: Scale) -> list[str]:
    places = " L".join(f"{x.at(point.x)},{y.at(point.y)}" for point in line)
    circles = [f'<circle class="point {style}" cx="{x.at(point.x)}" cy="{y.at(point.y)}" r="4"/>' for point in line]
    return [f'<path class="curve {style}" d="M{places}"/>', *circles]


def _names(points: Sequence[Point], x: Scale, y: Scale) -> Iterator[str]:
    """The names beside points, but not the same twice in one place."""
    named: list[Point] = []
    for point in points:
        if not any(_side_by_side(point, other, x, y) for other in named):
            named.append(point)
            aside, anchor = (-7, "end") if point.x > 0.9 * x.high else (7, "start")  # the right end has no room
            place = f'x="{x.at(point.x) + aside:g}" y="{y.at(point.y) + 14:g}" text-anchor="{anchor}"'
            yield f'<text class="tick" {place}>{escape(point.name)}</text>'


def _side_by_side(one: Point, other: Point, x: Scale, y: Scale) -> bool:
    """Whether the same name would be written twice in one place."""
    return one.name == other.name and abs(x.at(one.x) - x.at(other.x)) < 40 and abs(y.at(one.y) - y.at(other.y)) < 14
