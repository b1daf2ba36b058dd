"""What the labels allow a judge to be used for, why, and what more labels would buy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from assay.calibration.correction import post_stratified
from assay.calibration.proportions import wilson_interval
from assay.calibration.rates import ALL, ErrorRates

if TYPE_CHECKING:
    from assay.calibration.annotators import AltTest, Ceiling
    from assay.calibration.statistic import Statistic

#: no_data: the raw gauge, marked. unusable: no alerts. trend_only: alerts on change. calibrated: a level objective on
#: the corrected gauge. human_like: may also stand in for a second annotator. Each allows what those before it do.
Level = Literal["no_data", "unusable", "trend_only", "calibrated", "human_like"]

#: The levels, lowest first.
LEVELS: tuple[Level, ...] = ("no_data", "unusable", "trend_only", "calibrated", "human_like")

#: Below these there is no telling.
MIN_LABELS, MIN_CLASS = 30, 10
#: What a level objective takes.
GATE_LABELS, GATE_FAILS, GATE_YOUDEN = 100, 20, 0.30
#: A judge that may be no better than this is unusable.
FLOOR_YOUDEN, FLOOR_AUC = 0.10, 0.60
#: Failing labels that tell two rubrics apart which differ by about 15 points of fail recall.
RANK_FAILS = 50

#: A class of labels.
Side = Literal["pass", "fail"]

#: The production window that a level's width is stated for.
_WINDOW = 1000.0
#: Fail recall to be known to plus or minus this.
_RECALL_WITHIN = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """How many more labels something takes."""

    goal: str
    #: more labels, chosen evenly
    labels: int
    #: more labels when half are chosen where the judge says fail; None when that does not make it fewer
    picked: int | None
    #: classes that no label is of: how many labels it takes to meet them is not known, `labels` is the least
    unseen: tuple[Side, ...] = ()

    def sentence(self) -> str:
        """Such as `to gate on it: about 160 more labels, or 60 when half are picked where the judge says fail`."""
        if self.unseen:
            among = " and ".join(f"at least {MIN_CLASS} {side}" for side in self.unseen)
            return f"{self.goal}: at least {_many(self.labels, 'more label')}, {among} among them"
        more = f"{self.goal}: about {_many(self.labels, 'more label')}"
        return (
            more if self.picked is None else f"{more}, or {self.picked} when half are picked where the judge says fail"
        )


def has_enough(rates: ErrorRates) -> bool:
    """Whether there are labels enough, of both classes, for any statistic; a level takes intervals as well."""
    counts = rates.counts
    return counts.n >= MIN_LABELS and min(counts.passes, counts.fails) >= MIN_CLASS


def level_half_width(rates: ErrorRates, *, seed: int = 0) -> float | None:
    """Half the 95 % interval of the pass ratio of a window of 1,000 records, corrected by fresh labels like these.

    None for labels chosen by hand, which tell nothing of a level, and when the judge gives too few of one verdict.
    """
    cell = rates.cells[ALL]
    if rates.selection == "curated" or cell.is_thin or cell.given_fail is None or cell.given_pass is None:
        return None
    passed = rates.judge_pass.value
    estimate, _ = post_stratified(
        [1 - passed, passed],
        _WINDOW,
        [cell.given_fail.value, cell.given_pass.value],
        [cell.given_fail.n_effective, cell.given_pass.n_effective],
        seed=seed,
    )
    return estimate.half_width


def judge_level(
    rates: ErrorRates,
    auc: Statistic,
    *,
    half_width: float | None,
    alt_test: AltTest | None = None,
    ceiling: Ceiling | None = None,
    min_fail_recall: float = 0.5,
    max_half_width: float = 0.05,
) -> tuple[Level, tuple[str, ...]]:
    """The level of a judge on its labels, by lower bounds and never by point values; and why, in sentences.

    Labels in too few clusters for an interval are `no_data`, however many they are.

    Args:
        rates: error rates by the labels.
        auc: area under the curve of score against label.
        half_width: see `level_half_width`.
        alt_test, ceiling: of the annotators, where there are several.
        min_fail_recall: lower bound of fail recall that the team asks for.
        max_half_width: half the interval of the level that the team can live with.
    """
    counts = rates.counts
    if not has_enough(rates):
        return "no_data", (
            f"{_many(counts.n, 'label')}, {counts.passes} pass and {counts.fails} fail: "
            f"it takes {MIN_LABELS}, and {MIN_CLASS} of each",
        )
    youden = rates.youden.lower
    if youden is None:
        return "no_data", (
            f"a level goes by intervals, and there are none: {rates.youden.reason or 'it is not known why'}",
        )
    weak = []
    if youden <= FLOOR_YOUDEN:
        weak.append(f"Youden's J may be as low as {youden:.2f}: it takes more than {FLOOR_YOUDEN:.2f}")
    if auc.lower is not None and auc.lower <= FLOOR_AUC:
        weak.append(f"its AUC may be as low as {auc.lower:.2f}: it takes more than {FLOOR_AUC:.2f}")
    if weak:
        return "unusable", ("it may tell good from bad hardly better than chance", *weak)
    missing = _missing(rates, half_width, min_fail_recall, max_half_width, youden)
    if auc.value is not None and auc.lower is None:
        missing.append(f"its AUC has no interval{f': {auc.reason}' if auc.reason else ''}")
    if missing:
        return "trend_only", tuple(missing)
    recall = rates.specificity.lower if rates.specificity is not None else 0.0
    good = (
        f"it flags at least {recall:.0%} of what people fail, and Youden's J is at least {youden:.2f}",
        *(() if half_width is None else (f"its corrected level is known to ±{100 * half_width:.0f} points",)),
    )
    alike = _human_like(alt_test, ceiling)
    return ("human_like", (*good, alike)) if alike else ("calibrated", good)


def more_labels(rates: ErrorRates, *, half_width: float | None, max_half_width: float = 0.05) -> tuple[Need, ...]:
    """What more labels would buy, cheapest first; nothing that is there already, nor what only more clusters buy."""
    counts = rates.counts
    fail_share = counts.fails / counts.n if counts.n else None
    picked_share = _picked_fail_share(rates)
    needs: list[Need] = []

    def need(goal: str, labels: int, fails: int, passes: int = 0) -> None:
        """So many labels in all, with so many fails and passes among them."""
        evenly = _more(
            counts.n, labels, (fails - counts.fails, fail_share), (passes - counts.passes, _less(fail_share))
        )
        if evenly is None or evenly <= 0:
            return
        picked = _more(
            counts.n, labels, (fails - counts.fails, picked_share), (passes - counts.passes, _less(picked_share))
        )
        better = picked is not None and picked < evenly and rates.selection == "probability"
        needs.append(Need(goal=goal, labels=evenly, picked=picked if better else None))

    seen: tuple[tuple[Side, int], ...] = (("pass", counts.passes), ("fail", counts.fails))
    unseen = tuple(side for side, n in seen if not n)
    if unseen:
        short = sum(max(0, MIN_CLASS - n) for _, n in seen)
        least = max(short, MIN_LABELS - counts.n)
        return (Need(goal="to say anything", labels=least, picked=None, unseen=unseen),)
    need("to say anything", MIN_LABELS, MIN_CLASS, MIN_CLASS)
    if has_enough(rates) and rates.youden.lower is not None:
        need("to gate on it", GATE_LABELS, GATE_FAILS)
        recall = rates.specificity.value if rates.specificity is not None else 0.5
        goal = f"to know its fail recall to ±{100 * _RECALL_WITHIN:.0f} points"
        need(goal, 0, _trials_for(recall, _RECALL_WITHIN))
        need("to tell rubrics apart that differ by 15 points of fail recall", 0, RANK_FAILS)
        if half_width is not None:
            # Widths go with one over the root of the labels.
            for within in sorted({max_half_width, 0.03}, reverse=True):
                labels = math.ceil(rates.n * (half_width / within) ** 2)
                if labels > rates.n:
                    goal = f"to know the level to ±{100 * within:g} points"
                    needs.append(Need(goal=goal, labels=_rounded(labels - rates.n), picked=None))
    return tuple(sorted(needs, key=lambda found: found.labels))


def _missing(
    rates: ErrorRates, half_width: float | None, min_fail_recall: float, max_half_width: float, youden: float
) -> list[str]:
    counts = rates.counts
    recall = rates.specificity.lower if rates.specificity is not None else 0.0
    missing = []
    if recall < min_fail_recall:
        missing.append(
            f"it may flag only {recall:.0%} of what people fail: at least {min_fail_recall:.0%} is asked for"
        )
    if youden < GATE_YOUDEN:
        missing.append(f"Youden's J may be as low as {youden:.2f}: a level takes {GATE_YOUDEN:.2f}")
    if counts.n < GATE_LABELS or counts.fails < GATE_FAILS:
        missing.append(
            f"{_many(counts.n, 'label')} with {_many(counts.fails, 'fail')}: "
            f"a level takes {GATE_LABELS} with {GATE_FAILS}"
        )
    if rates.selection == "probability":
        if half_width is None:
            missing.append("it gives too few of one verdict to know the level by")
        elif half_width > max_half_width:
            missing.append(
                f"its corrected level is known to ±{100 * half_width:.1f} points: it takes ±{100 * max_half_width:g}"
            )
    return missing


def _human_like(alt_test: AltTest | None, ceiling: Ceiling | None) -> str | None:
    if alt_test is not None and alt_test.passed:
        tested = sum(p is not None for p in alt_test.p_values)
        won = round(alt_test.winning_rate * tested)
        return f"it may stand in for {won} of {tested} annotators (alternative annotator test)"
    if ceiling is not None and ceiling.z is not None and abs(ceiling.z) < 1:
        return f"its kappa is {abs(ceiling.z):.1f} standard deviations from that of people among themselves"
    return None


def _picked_fail_share(rates: ErrorRates) -> float | None:
    """Share of fails among labels that are half where the judge says fail."""
    cell = rates.cells[ALL]
    if cell.given_fail is None or cell.given_pass is None:
        return None
    return 1 - (cell.given_fail.value + cell.given_pass.value) / 2


def _more(have: int, labels: int, *classes: tuple[int, float | None]) -> int | None:
    """More labels to have `labels` in all and enough of each class, given as (how many more, its share)."""
    more = max(0, labels - have)
    for missing, share in classes:
        if missing > 0:
            if not share:
                return more or None
            more = max(more, math.ceil(missing / share))
    return _rounded(more)


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _less(share: float | None) -> float | None:
    return None if share is None else 1 - share


def _rounded(labels: int) -> int:
    """Up to a number that does not feign precision."""
    step = 1 if labels <= 20 else 5 if labels <= 100 else 10 if labels <= 500 else 100
    return -(-labels // step) * step


def _trials_for(share: float, within: float) -> int:
    """Trials in which Wilson's interval of `share` is at most `within` to either side."""
    n = 1
    while n < 10_000:
        lower, upper = wilson_interval(share * n, n)
        if (upper - lower) / 2 <= within:
            return n
        n += 1
    return n
