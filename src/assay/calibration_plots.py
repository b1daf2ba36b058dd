"""The plots of a calibration report: numbers in, SVG out.

Pure functions. A drawing is 360 units wide, so that its text keeps its size from a phone to half a page; colours come
from the page's style sheet by class. What differs by colour differs by shape or place too. Every mark has a `<title>`
with its numbers, every drawing a title and a description.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log10
from typing import TYPE_CHECKING, Literal, NamedTuple

from assay._markup import Markup, clipped, element, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from assay.calibration import Counts

#: Width of every drawing, in user units.
WIDTH = 360.0
#: The longest text beside a mark, in characters.
MOST_LABEL = 40

Shape = Literal["circle", "diamond", "square", "triangle"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 348.0, 12.0, 44.0
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CAP = 3.0


class Scale(NamedTuple):
    """Numbers from `low` to `high` onto a length from `start` to `end`; what lies beyond stays at the end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where `value` is drawn."""
        if self.high <= self.low:
            return (self.start + self.end) / 2
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A value with its interval, or None where there is none; who or what it stands for, and how it is drawn."""

    title: str
    value: float
    lower: float | None = None
    upper: float | None = None
    #: class of the style sheet: judge, people, pass, fail, plain
    kind: str = "judge"
    shape: Shape = "circle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mark in the plane."""

    title: str
    x: float
    y: float
    kind: str = "judge"
    shape: Shape = "circle"
    #: drawn as an outline, so that a mark beneath it shows
    hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A value over x with its interval in y."""

    title: str
    x: float
    y: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A name and its marks, one below the other; without any, `reason` says why. A heading has neither."""

    label: str
    marks: tuple[Mark, ...] = ()
    reason: str = ""
    #: the marks share a line
    together: bool = False


def percent(value: float) -> str:
    """A share in whole per cent; near its ends with a decimal, so that 99.6 does not read as all."""
    whole = f"{100 * value:.0f}%"
    return f"{100 * value:.1f}%" if whole in ("0%", "100%") and value not in (0.0, 1.0) else whole


def plain(value: float) -> str:
    """A number in three digits at most."""
    return f"{value:.3g}"


def drawing(name: str, title: str, description: str, height: float, *children: Markup | None) -> Markup:
    """An SVG image `WIDTH` wide with its accessible name and description; `name` is unique on the page."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="plot",
    )


def confusion_plot(
    counts: Counts, *, fail_recall: float | None, pass_recall: float | None, labellers: str = "people"
) -> Markup:
    """The four cells of label by verdict: counts, and shares of the row (weighted when the caller's are).

    Args:
        counts: unweighted.
        fail_recall: share of what `labellers` fails that the judge fails; None without any.
        pass_recall: share of what `labellers` passes that the judge passes; None without any.
        labellers: who gave the labels, in the plural.
    """
    rows = (
        (
            f"{labellers} fail {counts.fails:,}",
            (counts.both_fail, "flagged", fail_recall, "agree"),
            (counts.false_pass, "missed", _rest(fail_recall), "differ"),
        ),
        (
            f"{labellers} pass {counts.passes:,}",
            (counts.false_fail, "false flag", _rest(pass_recall), "differ"),
            (counts.both_pass, "passed", pass_recall, "agree"),
        ),
    )
    width, height, gap, top = 172.0, 74.0, 8.0, 22.0
    parts: list[Markup] = []
    for column, title in enumerate(("the judge fails", "the judge passes")):
        parts.append(_words(title, 4 + column * (width + gap) + width / 2, 14, "label middle"))
    for row, (title, *cells) in enumerate(rows):
        y = top + row * (height + 30)
        parts.append(_words(clipped(title, MOST_LABEL), 4, y + 16, "label strong"))
        for column, (count, word, share, kind) in enumerate(cells):
            x = 4 + column * (width + gap)
            opacity = 0.10 + 0.40 * (share or 0.0)
            box = element(
                "rect", x=x, y=y + 24, width=width, height=height, rx=6, class_=f"cell {kind}", fill_opacity=opacity
            )
            parts += [
                box,
                element("rect", x=x, y=y + 24, width=5, height=height, rx=2, class_=f"edge {kind}"),
                _words(f"{count:,}", x + 18, y + 60, "count"),
                _words(word, x + 18, y + 82, "label"),
            ]
            if share is not None:
                parts.append(_words(percent(share), x + width - 12, y + 60, "share end"))
                parts.append(_words("of this row", x + width - 12, y + 82, "label end"))
    said = (
        f"Of {counts.fails:,} that {labellers} fail, the judge fails {counts.both_fail:,} and passes "
        f"{counts.false_pass:,}; of {counts.passes:,} that {labellers} pass, it passes {counts.both_pass:,} and fails "
        f"{counts.false_fail:,}."
    )
    return drawing("confusion", "Labels by verdicts", said, top + 2 * (height + 30), *parts)


def roc_plot(curve: Sequence[tuple[float, float]], points: Sequence[Point], *, description: str) -> Markup:
    """Share of fails flagged over share of passes flagged, as the threshold moves; `points` are thresholds on it.

    Args:
        curve: (false alarms, fail recall), both rising from 0 to 1.
        points: the operating point and others, in the same units.
        description: what it says, in a sentence.
    """
    height = 340.0
    x, y = Scale(0, 1, _LEFT, _RIGHT), Scale(0, 1, height - _BOTTOM, _TOP)
    line = _path([(x(along), y(up)) for along, up in curve])
    return drawing(
        "roc",
        "Fails flagged against false alarms, at every threshold",
        description,
        height,
        *_axes(x, y, "false alarms: share of passes flagged", "share of fails flagged"),
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="chance"),
        element("path", d=line, class_="curve judge"),
        *(_point(point, x, y, 7.0 if point.hollow else 5.5) for point in points),
    )


def reliability_plot(
    spans: Sequence[Span], raw: Sequence[tuple[float, float]], *, description: str, labellers: str = "people"
) -> Markup:
    """What the mapped score says against the share that passes, with intervals; the score as it is beside it.

    Args:
        spans: one for each bin, x the mean mapped score, y the share that `labellers` pass.
        raw: (mean score, share that `labellers` pass) of bins of the score itself.
        description: what it says, in a sentence.
        labellers: who gave the labels, in the plural.
    """
    height = 340.0
    x, y = Scale(0, 1, _LEFT, _RIGHT), Scale(0, 1, height - _BOTTOM, _TOP)
    unmapped = [
        Point(title=f"score {s:.2f}: {percent(p)} pass", x=s, y=p, kind="plain", shape="square", hollow=True)
        for s, p in raw
    ]
    return drawing(
        "reliability",
        "Score against the share that passes",
        description,
        height,
        *_axes(x, y, "what the judge says: chance to pass", f"share that {labellers} pass"),
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="chance"),
        element("path", d=_path([(x(point.x), y(point.y)) for point in unmapped]), class_="curve plain"),
        *(_point(point, x, y, 4.0) for point in unmapped),
        *(_span(span, x, y) for span in spans),
    )


def histogram_plot(
    edges: Sequence[float],
    passes: Sequence[float],
    fails: Sequence[float],
    *,
    threshold: float,
    names: tuple[str, str],
    description: str,
) -> Markup:
    """Scores of what passes, upwards, and of what fails, downwards: shares of each class by bin.

    Args:
        edges: of the bins, ascending, one more than there are bins.
        passes, fails: share of its class in each bin, in [0, 1].
        threshold: a score passes from here on.
        names: what the two halves are, passes first.
        description: what it says, in a sentence.
    """
    height, middle = 306.0, 146.0
    x = Scale(0, 1, _LEFT - 16, _RIGHT)
    tall = Scale(0, max([*passes, *fails, 0.01]), 0, middle - 38)
    bars = []
    for low, high, *shares in zip(edges[:-1], edges[1:], passes, fails, strict=True):
        for share, kind, verb in zip(shares, ("pass", "fail"), ("passes", "fails"), strict=True):
            if share > 0:
                bars.append(
                    element(
                        "rect",
                        element("title", f"score {low:.2f} to {high:.2f}: {percent(share)} of what {verb}"),
                        x=x(low) + 0.5,
                        y=middle - tall(share) if kind == "pass" else middle,
                        width=max(1.0, x(high) - x(low) - 1),
                        height=tall(share),
                        class_=f"bar {kind}",
                    )
                )
    # The words stand on the side where there is more room.
    at = x(threshold)
    side, shift = ("start", 5.0) if at < WIDTH / 2 else ("end", -5.0)
    return drawing(
        "histogram",
        "Scores by label",
        description,
        height,
        *bars,
        element("line", x1=x(0), y1=middle, x2=x(1), y2=middle, class_="axis"),
        element("line", x1=at, y1=18, x2=at, y2=2 * middle - 26, class_="threshold"),
        _words(f"passes from {threshold:.3g}", at + shift, 28, f"label {side}"),
        _words(clipped(names[0], MOST_LABEL), 6, 12, "label strong pass-text"),
        _words(clipped(names[1], MOST_LABEL), 6, 2 * middle - 22, "label strong fail-text"),
        *_x_axis(x, 2 * middle - 20, "score", write=plain),
    )


def rows_plot(
    name: str,
    title: str,
    rows: Sequence[Row],
    *,
    description: str,
    axis: str,
    low: float = 0.0,
    high: float = 1.0,
    ticks: Sequence[float] = _QUARTERS,
    write: Callable[[float], str] = percent,
) -> Markup:
    """One line for each row: its name above, its marks with their intervals along it, from `low` to `high`."""
    x = Scale(low, high, 14, WIDTH - 14)
    y, parts = 4.0, []
    for row in rows:
        if not row.marks and not row.reason:
            y += 22
            parts.append(_words(clipped(row.label, MOST_LABEL), 4, y, "label strong"))
            y += 6
            continue
        y += 16
        parts.append(_words(clipped(row.label, MOST_LABEL), 14, y, "label"))
        if row.reason:
            parts.append(_words(clipped(row.reason, 62), 14, y + 15, "tick"))
            y += 20
        # Marks of one row lie one below the other: intervals that overlap stay apart.
        for line in (row.marks,) if row.together else [(mark,) for mark in row.marks]:
            y += 13
            parts += [_mark(mark, x, y) for mark in line]
        y += 6
    parts = [element("line", x1=x(tick), y1=4, x2=x(tick), y2=y, class_="grid") for tick in ticks] + parts
    return drawing(
        name, title, description, y + 40, *parts, *_x_axis(x, y + 2, axis, ticks=ticks, write=write, line=True)
    )


def residual_plot(
    spans: Sequence[Span], points: Sequence[tuple[float, float]], *, description: str, labellers: str = "people"
) -> Markup:
    """Score less label over the length of the answer (characters, on a log scale), with means by length.

    Args:
        spans: one for each bin of lengths, x the length, y the mean of score less label.
        points: (length at least 1, score less label) of single records, the shortest and longest among them.
        description: what it says, in a sentence.
        labellers: who gave the labels, in the plural.
    """
    height = 300.0
    lengths = [length for length, _ in points] or [1.0]
    low, high = log10(min(lengths)), log10(max(lengths))
    room = max(0.05, 0.04 * (high - low))
    x, y = Scale(low - room, high + room, _LEFT, _RIGHT), Scale(-1, 1, height - _BOTTOM, _TOP)
    means = [replace(span, x=log10(span.x)) for span in spans]
    return drawing(
        "length",
        "Judge less label, by length of the answer",
        description,
        height,
        *_y_axis(
            y,
            _LEFT,
            _RIGHT,
            f"judge less {labellers}",
            ticks=(-1, -0.5, 0, 0.5, 1),
            write=lambda v: f"{v:+g}" if v else "0",
        ),
        *_x_axis(
            x,
            height - _BOTTOM,
            "length of the answer, characters",
            ticks=[log10(tick) for tick in _log_ticks(min(lengths), max(lengths))],
            write=lambda v: f"{round(10**v):,}",
        ),
        element("line", x1=_LEFT, y1=y(0), x2=_RIGHT, y2=y(0), class_="chance"),
        *(element("circle", cx=x(log10(length)), cy=y(less), r=2, class_="dot") for length, less in points),
        element("path", d=_path([(x(mean.x), y(mean.y)) for mean in means]), class_="curve judge"),
        *(_span(mean, x, y) for mean in means),
    )


def interval_bar(
    mark: Mark, *, low: float = 0.0, high: float = 1.0, reference: float | None = None, reference_name: str = ""
) -> Markup:
    """One value with its interval on a track, for beside a sentence; `reference` is a line across it.

    It says nothing that the sentence does not, so it is hidden from screen readers.
    """
    height = 22.0
    x, y = Scale(low, high, 4, WIDTH - 4), height / 2
    line = None
    if reference is not None:
        at = x(reference)
        line = element("line", element("title", reference_name), x1=at, y1=1, x2=at, y2=height - 1, class_="threshold")
    return element(
        "svg",
        element("rect", x=x(low), y=y - 3, width=x(high) - x(low), height=6, rx=3, class_="track"),
        _band(mark, x, y),
        line,
        _marker(x(mark.value), y, 6.0, mark.shape, f"mark {mark.kind}"),
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        class_="bar-plot",
        aria_hidden="true",
    )


def symbol(shape: Shape, kind: str, *, hollow: bool = False) -> Markup:
    """A mark for a legend."""
    return element(
        "svg",
        _marker(8, 8, 5.5, shape, f"{'ring' if hollow else 'mark'} {kind}"),
        viewBox="0 0 16 16",
        class_="symbol",
        aria_hidden="true",
    )


def _rest(share: float | None) -> float | None:
    return None if share is None else 1 - share


def _words(text: str, x: float, y: float, class_: str) -> Markup:
    return element("text", text, x=x, y=y, class_=class_)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{number(x)} {number(y)}" for index, (x, y) in enumerate(points))


def _marker(x: float, y: float, r: float, shape: Shape, class_: str, title: str = "") -> Markup:
    inside = element("title", title) if title else None
    if shape == "circle":
        return element("circle", inside, cx=x, cy=y, r=r, class_=class_)
    corners = {
        "diamond": ((0.0, -1.2), (1.2, 0.0), (0.0, 1.2), (-1.2, 0.0)),
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0.0, -1.15), (1.05, 0.8), (-1.05, 0.8)),
    }[shape]
    return element("path", inside, d=_path([(x + r * a, y + r * b) for a, b in corners]) + "Z", class_=class_)


def _point(point: Point, x: Scale, y: Scale, r: float) -> Markup:
    class_ = f"{'ring' if point.hollow else 'mark'} {point.kind}"
    return _marker(x(point.x), y(point.y), r, point.shape, class_, point.title)


def _band(mark: Mark, x: Scale, y: float) -> Markup | None:
    if mark.lower is None or mark.upper is None:
        return None
    start, end = x(mark.lower), x(mark.upper)
    return element("rect", x=start, y=y - 3, width=max(1.0, end - start), height=6, rx=3, class_=f"band {mark.kind}")


def _mark(mark: Mark, x: Scale, y: float) -> Markup:
    parts: list[Markup] = [element("title", mark.title)]
    if mark.lower is not None and mark.upper is not None:
        start, end = x(mark.lower), x(mark.upper)
        parts.append(element("line", x1=start, y1=y, x2=end, y2=y, class_=f"whisker {mark.kind}"))
        parts += [
            element("line", x1=at, y1=y - _CAP, x2=at, y2=y + _CAP, class_=f"whisker {mark.kind}")
            for at in (start, end)
        ]
    parts.append(_marker(x(mark.value), y, 4.5, mark.shape, f"mark {mark.kind}"))
    return element("g", *parts)


def _span(span: Span, x: Scale, y: Scale) -> Markup:
    at, low, high = x(span.x), y(span.lower), y(span.upper)
    return element(
        "g",
        element("title", span.title),
        element("line", x1=at, y1=low, x2=at, y2=high, class_="whisker judge"),
        *(element("line", x1=at - _CAP, y1=end, x2=at + _CAP, y2=end, class_="whisker judge") for end in (low, high)),
        element("circle", cx=at, cy=y(span.y), r=4.5, class_="mark judge"),
    )


def _axes(x: Scale, y: Scale, x_title: str, y_title: str) -> list[Markup]:
    return [*_y_axis(y, x.start, x.end, y_title), *_x_axis(x, y.start, x_title, grid_to=y.end)]


def _x_axis(
    x: Scale,
    at: float,
    title: str,
    *,
    ticks: Sequence[float] = _QUARTERS,
    write: Callable[[float], str] = percent,
    grid_to: float | None = None,
    line: bool = False,
) -> list[Markup]:
    parts = []
    for tick in ticks:
        if grid_to is not None:
            parts.append(element("line", x1=x(tick), y1=at, x2=x(tick), y2=grid_to, class_="grid"))
        # Words at the ends of the drawing stay inside it.
        side = "start" if x(tick) < 12 else "end" if x(tick) > WIDTH - 20 else "middle"
        parts.append(_words(write(tick), x(tick), at + 15, f"tick {side}"))
    if line:
        parts.append(element("line", x1=x.start, y1=at, x2=x.end, y2=at, class_="axis"))
    parts.append(_words(title, (x.start + x.end) / 2, at + 33, "label middle"))
    return parts


def _y_axis(
    y: Scale,
    left: float,
    right: float,
    title: str,
    *,
    ticks: Sequence[float] = _QUARTERS,
    write: Callable[[float], str] = percent,
) -> list[Markup]:
    parts = []
    for tick in ticks:
        parts.append(element("line", x1=left, y1=y(tick), x2=right, y2=y(tick), class_="grid"))
        parts.append(_words(write(tick), left - 6, y(tick) + 4, "tick end"))
    middle = (y.start + y.end) / 2
    parts.append(element("text", title, transform=f"translate(11 {number(middle)}) rotate(-90)", class_="label middle"))
    return parts


def _log_ticks(low: float, high: float) -> list[float]:
    """Round lengths from `low` to `high`, at most six; the ends themselves when there are none between."""
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in range(10) for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 6:
            break
    return ticks[:6] if len(ticks) >= 2 else sorted({low, high})
