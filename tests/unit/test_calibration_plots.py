"""Plots: numbers in, and the marks stand where the numbers say, inside the drawing."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.calibration import Counts
from assay.calibration_plots import (
    WIDTH,
    Mark,
    Point,
    Row,
    Scale,
    Span,
    confusion_plot,
    histogram_plot,
    interval_bar,
    percent,
    reliability_plot,
    residual_plot,
    roc_plot,
    rows_plot,
    symbol,
)

UNIT = st.floats(0, 1)
#: of the square plots: x from 0 to 1, y from 0 to 1
LEFT, RIGHT, TOP, BOTTOM = 46.0, 348.0, 12.0, 296.0


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def classed(drawing: str, *names: str) -> list[ElementTree.Element]:
    """Elements that have all these classes."""
    return [e for e in parsed(drawing).iter() if set(names) <= set(e.get("class", "").split())]


def path(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([^LZ]+)", line.get("d", ""))]


def coordinates(drawing: str) -> list[tuple[float, float]]:
    """Every place that is drawn at, but for the turned words beside the y axis."""
    found = []
    for e in parsed(drawing).iter():
        get = {name: float(value) for name, value in e.items() if re.fullmatch(r"-?[0-9.]+", value)}
        if e.tag == "rect":
            found += [(get["x"], get["y"]), (get["x"] + get["width"], get["y"] + get["height"])]
        elif e.tag == "circle":
            found.append((get["cx"], get["cy"]))
        elif e.tag == "line":
            found += [(get["x1"], get["y1"]), (get["x2"], get["y2"])]
        elif e.tag == "path":
            found += path(e)
        elif e.tag == "text" and "x" in get:
            found.append((get["x"], get["y"]))
    return found


def assert_inside(drawing: str) -> None:
    _, _, width, height = map(float, parsed(drawing).get("viewBox", "").split())
    assert width == WIDTH
    for x, y in coordinates(drawing):
        assert -0.01 <= x <= width + 0.01, (x, y)
        assert -0.01 <= y <= height + 0.01, (x, y)


# Scales.


@pytest.mark.parametrize(("value", "at"), [(0, 10), (0.5, 60), (1, 110), (-3, 10), (7, 110)])
def test_a_scale_goes_straight_and_stays_at_its_ends(value, at):
    assert Scale(0, 1, 10, 110)(value) == at


def test_a_scale_may_go_down():
    assert Scale(-1, 1, 200, 0)(0.5) == 50


def test_a_scale_of_one_value_is_its_middle():
    assert Scale(3, 3, 0, 100)(3) == 50


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.004, "0.4%"), (0.9961, "99.6%"), (0.996, "99.6%"), (0.9999, "100.0%")],
)
def test_shares_near_an_end_do_not_read_as_the_end(share, text):
    assert percent(share) == text


# Confusion matrix.


def test_confusion_has_each_count_in_its_cell():
    drawing = confusion_plot(
        Counts(both_pass=150, false_fail=20, false_pass=8, both_fail=30), fail_recall=30 / 38, pass_recall=150 / 170
    )
    cells = classed(drawing, "cell")
    counts = classed(drawing, "count")
    assert [count.text for count in counts] == ["30", "8", "20", "150"]
    # Flagged and missed above, false flags and passed below; what the judge fails is on the left.
    where = [(float(c.get("x", "")) < WIDTH / 2, float(c.get("y", "")) < 120) for c in cells]
    assert where == [(True, True), (False, True), (True, False), (False, False)]
    for cell, count in zip(cells, counts, strict=True):
        left, top = float(cell.get("x", "")), float(cell.get("y", ""))
        assert left < float(count.get("x", "")) < left + float(cell.get("width", ""))
        assert top < float(count.get("y", "")) < top + float(cell.get("height", ""))
    assert [share.text for share in classed(drawing, "share")] == ["79%", "21%", "12%", "88%"]
    assert_inside(drawing)


def test_confusion_is_darker_where_more_of_the_row_is():
    counts = Counts(both_pass=9, false_fail=1, false_pass=2, both_fail=8)
    cells = classed(confusion_plot(counts, fail_recall=0.8, pass_recall=0.9), "cell")
    opacity = [float(cell.get("fill-opacity", "")) for cell in cells]
    # Never so dark that the words on it cannot be read.
    assert opacity == pytest.approx([0.1 + 0.4 * share for share in (0.8, 0.2, 0.1, 0.9)])


def test_confusion_without_a_class_has_no_shares_of_it():
    counts = Counts(both_pass=9, false_fail=1, false_pass=0, both_fail=0)
    drawing = confusion_plot(counts, fail_recall=None, pass_recall=0.9)
    assert [share.text for share in classed(drawing, "share")] == ["10%", "90%"]
    assert [count.text for count in classed(drawing, "count")] == ["0", "0", "1", "9"]


def test_confusion_names_who_labelled():
    counts = Counts(both_pass=1, false_fail=1, false_pass=1, both_fail=1)
    drawing = confusion_plot(counts, fail_recall=0.5, pass_recall=0.5, labellers="the labels")
    assert "people" not in drawing
    assert "the labels fail 2" in drawing


# ROC and reliability.


def test_roc_marks_stand_on_their_numbers():
    curve = [(0.0, 0.0), (0.1, 0.6), (0.5, 0.9), (1.0, 1.0)]
    drawing = roc_plot(curve, [Point(title="here", x=0.25, y=0.75)], description="")
    (line,) = classed(drawing, "curve")
    expected = [(LEFT + 302 * x, BOTTOM - 284 * y) for x, y in curve]
    assert path(line) == [pytest.approx(point, abs=0.01) for point in expected]
    (mark,) = classed(drawing, "mark")
    assert (float(mark.get("cx", "")), float(mark.get("cy", ""))) == pytest.approx((121.5, 83.0))
    assert mark.findtext("title") == "here"
    assert_inside(drawing)


def test_roc_chance_goes_from_corner_to_corner():
    (line,) = classed(roc_plot([(0, 0), (1, 1)], [], description=""), "chance")
    assert [float(line.get(k, "")) for k in ("x1", "y1", "x2", "y2")] == [LEFT, BOTTOM, RIGHT, TOP]


def test_reliability_intervals_reach_from_end_to_end():
    span = Span(title="bin", x=0.5, y=0.6, lower=0.4, upper=0.75)
    drawing = reliability_plot([span], [(0.2, 0.3)], description="")
    upright, *caps = classed(drawing, "whisker")
    assert float(upright.get("x1", "")) == float(upright.get("x2", "")) == 197
    ends = [float(upright.get("y1", "")), float(upright.get("y2", ""))]
    assert ends == pytest.approx([BOTTOM - 284 * 0.4, BOTTOM - 284 * 0.75])
    assert [float(cap.get("y1", "")) for cap in caps] == ends
    (mark,) = classed(drawing, "mark")
    assert float(mark.get("cy", "")) == pytest.approx(BOTTOM - 284 * 0.6)
    (raw,) = classed(drawing, "ring")
    assert raw.findtext("title") == "score 0.20: 30% pass"


# Histogram.


def test_histogram_bars_are_as_tall_as_their_shares_up_and_down():
    drawing = histogram_plot(
        [0, 0.25, 0.5, 1.0], [0.0, 0.2, 0.8], [0.4, 0.4, 0.2], threshold=0.5, names=("good", "bad"), description=""
    )
    up, down = classed(drawing, "bar", "pass"), classed(drawing, "bar", "fail")
    heights = [float(bar.get("height", "")) for bar in up + down]
    assert heights == pytest.approx([27, 108, 54, 54, 27])
    (axis,) = classed(drawing, "axis")
    middle = float(axis.get("y1", ""))
    assert [float(bar.get("y", "")) + float(bar.get("height", "")) for bar in up] == pytest.approx([middle] * 2)
    assert [float(bar.get("y", "")) for bar in down] == [middle] * 3
    (line,) = classed(drawing, "threshold")
    # A bar that begins at the threshold passes: it stands to the right of the line.
    assert float(up[1].get("x", "")) == pytest.approx(float(line.get("x1", "")) + 0.5)
    assert_inside(drawing)


@pytest.mark.parametrize(("threshold", "side"), [(0.1, "start"), (0.4, "start"), (0.6, "end"), (1.0, "end")])
def test_histogram_words_of_the_threshold_stand_where_there_is_room(threshold, side):
    drawing = histogram_plot([0, 1], [1], [1], threshold=threshold, names=("a", "b"), description="")
    (words,) = [e for e in classed(drawing, side) if (e.text or "").startswith("passes from")]
    assert words.text == f"passes from {threshold:g}"


# Rows.


def row(label: str, *values: float) -> Row:
    marks = tuple(Mark(title=f"{v}", value=v, lower=max(0, v - 0.1), upper=min(1, v + 0.1)) for v in values)
    return Row(label=label, marks=marks)


def test_rows_keep_their_order_and_do_not_overlap():
    rows = [row("all", 0.5, 0.6), Row(label="route"), row("chat", 0.1, 0.2), row("search", 0.8, 0.9)]
    drawing = rows_plot("groups", "Groups", rows, description="", axis="share")
    marks = classed(drawing, "mark")
    heights = [float(mark.get("cy", "")) for mark in marks]
    assert heights == sorted(heights)
    assert min(b - a for a, b in pairwise(heights)) >= 10
    assert [float(mark.get("cx", "")) for mark in marks] == pytest.approx(
        [14 + 332 * v for v in (0.5, 0.6, 0.1, 0.2, 0.8, 0.9)]
    )
    words = [e.text for e in classed(drawing, "label")]
    assert words == ["all", "route", "chat", "search", "share"]
    assert_inside(drawing)


def test_a_row_without_a_number_says_why():
    drawing = rows_plot("x", "X", [Row(label="kappa", reason="too few labels")], description="", axis="")
    assert "too few labels" in drawing
    assert not classed(drawing, "mark")


def test_marks_together_share_a_line():
    marks = tuple(Mark(title="", value=value) for value in (0.2, 0.4))
    drawing = rows_plot("x", "X", [Row(label="each", marks=marks, together=True)], description="", axis="")
    assert len({mark.get("cy") for mark in classed(drawing, "mark")}) == 1


def test_rows_may_go_below_zero():
    marks = (Mark(title="", value=-0.25, lower=-0.5, upper=0.0),)
    drawing = rows_plot("x", "X", [Row(label="kappa", marks=marks)], description="", axis="", low=-0.5)
    (mark,) = classed(drawing, "mark")
    assert float(mark.get("cx", "")) == pytest.approx(14 + 332 / 6, abs=0.01)


def test_long_names_are_cut():
    drawing = rows_plot("x", "X", [row("n" * 500, 0.5)], description="", axis="")
    assert max(len(e.text or "") for e in classed(drawing, "label")) == 40


# Length.


def test_residuals_stand_on_a_log_scale():
    points = [(10.0, 0.0), (100.0, 1.0), (1000.0, -1.0)]
    drawing = residual_plot([], points, description="")
    dots = classed(drawing, "dot")
    x = [float(dot.get("cx", "")) for dot in dots]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)
    assert [float(dot.get("cy", "")) for dot in dots] == [134, 12, 256]
    assert {"10", "100", "1,000"} <= {e.text for e in classed(drawing, "tick")}
    assert_inside(drawing)


@pytest.mark.parametrize("lengths", [(7, 7), (1, 1), (1, 3), (5, 90_000_000), (120, 180)])
def test_any_lengths_have_ticks(lengths):
    drawing = residual_plot([], [(float(length), 0.0) for length in lengths], description="")
    ticks = [e.text for e in classed(drawing, "tick") if "end" not in e.get("class", "")]
    assert 1 <= len(ticks) <= 7
    assert_inside(drawing)


# Bars and symbols.


def test_an_interval_bar_holds_its_value():
    bar = interval_bar(Mark(title="", value=0.5, lower=0.25, upper=0.75), reference=0.9)
    (band,), (mark,), (line,) = classed(bar, "band"), classed(bar, "mark"), classed(bar, "threshold")
    start, width = float(band.get("x", "")), float(band.get("width", ""))
    assert (start, start + width) == (92, 268)
    assert float(mark.get("cx", "")) == 180
    assert float(line.get("x1", "")) == pytest.approx(320.8)
    assert parsed(bar).get("aria-hidden") == "true"


def test_an_interval_bar_without_an_interval_has_no_band():
    assert not classed(interval_bar(Mark(title="", value=0.5)), "band")


@pytest.mark.parametrize("shape", ["circle", "diamond", "square", "triangle"])
def test_shapes_differ_without_their_colours(shape):
    others = {"circle", "diamond", "square", "triangle"} - {shape}
    assert all(symbol(shape, "judge") != symbol(other, "judge") for other in others)
    assert len(classed(symbol(shape, "people", hollow=True), "ring", "people")) == 1


# Any numbers.


@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=2, max_size=20),
    st.lists(st.tuples(UNIT, UNIT, UNIT), max_size=5),
)
def test_any_numbers_stay_inside(curve, spans):
    points = [Point(title="<&>", x=x, y=y, shape="diamond", hollow=True) for x, y in curve[:3]]
    assert_inside(roc_plot(curve, points, description="<&>"))
    made = [Span(title="", x=x, y=y, lower=min(y, z), upper=max(y, z)) for x, y, z in spans]
    assert_inside(reliability_plot(made, curve, description=""))
    marks = [Mark(title="", value=y, lower=min(y, z), upper=max(y, z)) for _, y, z in spans]
    assert_inside(rows_plot("x", "X", [Row(label="a", marks=tuple(marks), reason="none")], description="", axis=""))


def test_every_plot_has_a_name_and_a_description():
    drawings = [
        confusion_plot(Counts(both_pass=1, false_fail=0, false_pass=0, both_fail=1), fail_recall=1, pass_recall=1),
        roc_plot([(0, 0), (1, 1)], [], description="said"),
        reliability_plot([], [], description="said"),
        histogram_plot([0, 1], [1], [1], threshold=0.5, names=("a", "b"), description="said"),
        rows_plot("rows", "Rows", [], description="said", axis=""),
        residual_plot([], [(10, 0)], description="said"),
    ]
    named = set()
    for drawing in drawings:
        svg = parsed(drawing)
        title, description = svg[0], svg[1]
        assert (title.tag, description.tag) == ("title", "desc")
        assert title.text
        assert description.text
        assert svg.get("role") == "img"
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        named.add(title.get("id"))
    assert len(named) == len(drawings)
