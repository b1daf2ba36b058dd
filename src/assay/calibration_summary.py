"""A calibration in words: the first screen of `assay calibrate`, its table, and the same as JSON.

What to know comes first: of the bad answers, how many does the judge flag, and are its flags right. Accuracy comes
late: a judge that passes everything has plenty of it wherever most answers are good.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from assay.calibration.level import has_enough

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.calibrate import Calibrated, CalibrationRow, Compared
    from assay.calibration import AgreementReport, Difference, JudgingCost, Level, Statistic

#: What each level allows.
VERDICTS: dict[Level, str] = {
    "no_data": "NOT ENOUGH LABELS to say anything",
    "unusable": "UNUSABLE: build no alert on it",
    "trend_only": "TREND ONLY: alert on its changes, never on its level",
    "calibrated": "CALIBRATED: alert on its changes, and on its level once corrected",
    "human_like": "HUMAN-LIKE: as calibrated, and it may stand in for a second annotator",
}


_NONE = "no interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the first screen: a sentence, and the interval of its number, or that it has none, or ""."""

    text: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.interval})" if self.interval else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One statistic of the table; `note` says why it is undefined, or how to read it."""

    name: str
    value: str
    interval: str
    note: str = ""


def headline(calibrated: Calibrated) -> str:
    """What was calibrated: rubric, judge, version, labels."""
    made, counts = calibrated.calibration, calibrated.report.rates.counts
    parts = [
        made.rubric,
        f"judge {made.judge}",
        f"rubric {made.rubric_version}",
        f"{made.n} labels ({counts.fails} fail)",
        f"{made.annotators} annotators" if made.annotators > 1 else "1 annotator",
    ]
    if made.annotator_kind != "human":
        parts[-1] += {"author": ", the records' authors", "model": ", a model"}.get(
            made.annotator_kind, ", unknown who"
        )
    if made.synthetic:
        parts.append("synthetic records")
    return " · ".join(parts)


def first_screen(calibrated: Calibrated) -> tuple[Line, ...]:
    """The findings in sentences; none where there are too few labels for any."""
    report, who = calibrated.report, calibrated.labellers
    if not has_enough(report.rates):
        return ()
    return tuple(_findings(report, who))


def _findings(report: AgreementReport, who: str) -> Iterator[Line]:
    recall, precision, kappa = report.fail_recall, report.fail_precision, report.kappa
    if recall.value is not None:
        yield Line(text=f"flags {recall.value:.0%} of the answers that {who} reject", interval=_percents(recall))
    if precision.value is not None:
        yield Line(text=f"{who} agree with {precision.value:.0%} of its flags", interval=_percents(precision))
    else:
        yield Line(text=f"it flags nothing, so {who} can agree with no flag of it")
    if kappa.value is not None:
        text = f"kappa {kappa.value:.2f}"
        if report.ceiling is not None and report.ceiling.kappa.value is not None:
            text += f", {who} among themselves {report.ceiling.kappa.value:.2f}"
            if report.share_of_ceiling is not None:
                text += f": {max(0.0, report.share_of_ceiling):.0%} of that ceiling"
        yield Line(text=text, interval=_numbers(kappa) or _NONE)
    yield _bias(report, who)
    if report.auc.value is not None:
        text = f"ranks a good answer above a bad one {report.auc.value:.0%} of the time (AUC)"
        yield Line(text=text, interval=_percents(report.auc) or _NONE)
    if report.level_half_width is not None:
        within = f"±{100 * report.level_half_width:.0f} points"
        yield Line(text=f"its level, corrected by fresh labels like these, is known to {within}")


def _bias(report: AgreementReport, who: str) -> Line:
    rates = report.rates
    bias = rates.bias
    levels = f"judge {rates.judge_pass.value:.2f}, {who} {rates.human_pass.value:.2f}"
    if bias.value is not None and bias.lower is None:
        return Line(text=f"whether its pass ratio is right is not known: {levels}", interval=_NONE)
    if bias.value is None or bias.holds(0.0) or rates.bias_p >= 0.05:
        return Line(text=f"its pass ratio may be right: {levels}", interval=_points(bias))
    way = "high" if bias.value > 0 else "low"
    return Line(text=f"reads {100 * abs(bias.value):.0f} points too {way}: {levels}", interval=_points(bias))


def verdict(calibrated: Calibrated) -> str:
    """The level, in words."""
    return VERDICTS[calibrated.report.level]


def cost_sentence(cost: JudgingCost) -> str:
    """What judging one record takes."""
    parts = []
    if cost.prompt_tokens is not None and cost.completion_tokens is not None:
        parts.append(f"{cost.prompt_tokens:,.0f} prompt and {cost.completion_tokens:,.0f} reply tokens")
        price = "at an unknown price" if cost.cost_usd is None else f"{1000 * cost.cost_usd:.3g} USD per 1,000 records"
        parts.append(price)
    else:
        parts.append("no tokens")
    if cost.latency_seconds is not None:
        parts.append(f"{cost.latency_seconds:.1f} s")
    return ", ".join(parts)


def statistics_table(calibrated: Calibrated) -> tuple[TableRow, ...]:
    """Every statistic, in the order in which to read them."""
    report = calibrated.report
    ceiling, test = report.ceiling, report.alt_test
    found: list[tuple[str, Statistic | None, bool, str]] = [
        ("fail recall", report.fail_recall, True, ""),
        ("fail precision", report.fail_precision, True, ""),
        ("kappa", report.kappa, False, ""),
        ("weighted kappa", report.weighted_kappa, False, "over the levels, quadratic"),
        ("alpha of the annotators", report.alpha, False, ""),
        ("kappa of annotators", ceiling.kappa if ceiling else None, False, "each against the others"),
        ("kappa of judge in their place", ceiling.judge_kappa if ceiling else None, False, ""),
        ("fail recall of annotators", ceiling.fail_recall if ceiling else None, True, ""),
        ("bias of pass ratio", report.rates.bias, True, "judge less label"),
        ("bias of score", report.score_bias, False, "judge less label"),
        ("Youden's J", report.rates.youden, False, "slope of its pass ratio on the true one"),
        ("AUC", report.auc, False, ""),
        ("mean absolute error", report.mean_absolute_error, False, ""),
        ("Spearman", report.spearman, False, ""),
        ("Kendall", report.kendall, False, ""),
        ("Pearson", report.pearson, False, ""),
        ("Brier score", report.brier, False, "of mapped scores, out of fold"),
        ("calibration error", report.calibration_error, False, "of mapped scores, out of fold"),
        ("AC1", report.ac1, False, "looks good wherever one class is rare"),
        ("AC2", report.ac2, False, "looks good wherever one class is rare"),
        ("accuracy", report.accuracy, True, "looks good wherever one class is rare"),
        ("F1 of fail", report.f1_fail, False, ""),
        ("correlation with length", report.length_correlation, False, "of judge less label, with log length"),
    ]
    rows = [_row(name, statistic, note, share=share) for name, statistic, share, note in found if statistic is not None]
    if test is not None:
        note = f"alternative annotator test, ε {test.epsilon:g}"
        rows.append(TableRow(name="winning rate", value=f"{test.winning_rate:.2f}", interval="", note=note))
        rows.append(TableRow(name="advantage", value=f"{test.advantage:.2f}", interval="", note="ties count for both"))
    return tuple(rows)


def threshold_table(calibrated: Calibrated) -> tuple[tuple[str, str, str, str, str], ...]:
    """Rows of (purpose, threshold, fail recall, fail precision, why); the rubric's own comes first."""
    report = calibrated.report
    own = (
        "as it is",
        f"{calibrated.pass_threshold:g}",
        _shown(report.fail_recall, share=True),
        _shown(report.fail_precision, share=True),
        "the rubric's pass_threshold",
    )
    others = (
        (
            purpose,
            found.decimal or "–",
            _shown(found.fail_recall, share=True),
            _shown(found.fail_precision, share=True),
            found.reason,
        )
        for purpose, found in calibrated.calibration.thresholds.items()
    )
    return (own, *others)


def as_json(calibrated: Calibrated, *, worst: int = 5) -> dict[str, Any]:
    """The report as JSON-ready values: no NaN, what is undefined is null with a reason."""
    made, report = calibrated.calibration, calibrated.report
    statistics = asdict(report)
    rates = statistics.pop("rates")
    told = {name: statistics.pop(name) for name in ("level", "reasons", "notes", "needs", "undecided")}
    return {
        "level": made.level,
        "verdict": verdict(calibrated),
        "reasons": list(made.reasons),
        "notes": list(calibrated.notes),
        "needs": [need | {"sentence": n.sentence()} for need, n in zip(told["needs"], report.needs, strict=True)],
        "first_screen": [
            f"{line.text} ({line.interval})" if line.interval else line.text for line in first_screen(calibrated)
        ],
        "calibration_id": made.calibration_id,
        "rubric": made.rubric,
        "rubric_version": made.rubric_version,
        "rubric_hash": made.rubric_hash,
        "judge": made.judge,
        "judge_fingerprint": made.judge_fingerprint,
        "labels": {
            "path": str(calibrated.label_set.path),
            "sha256": made.labels_sha256,
            "records": len(calibrated.rows),
            "judged": made.n,
            "left_out": dict(made.left_out),
            "undecided": told["undecided"],
            "annotators": made.annotators,
            "annotator_kind": made.annotator_kind,
            "synthetic": made.synthetic,
            "selection": made.selection,
            "gold": made.gold,
        },
        "statistics": statistics,
        "rates": rates,
        "strata": {name: rates.to_dict() for name, rates in calibrated.strata.items()},
        "thresholds": {purpose: asdict(threshold) for purpose, threshold in made.thresholds.items()},
        "cost": asdict(made.cost),
        "disagreements": [_disagreement(row) for row in calibrated.disagreements(worst)],
    }


def difference_line(difference: Difference) -> Line:
    """Such as `fail recall +9 points (2 to 16)`, and both values."""
    sentence = difference.sentence()
    if difference.difference.value is not None and not difference.is_clear:
        sentence += ": may be none"
    both = (difference.first, difference.second)
    return Line(text=sentence, interval=" → ".join("–" if value is None else f"{value:.2f}" for value in both))


def comparison_json(compared: Compared, *, worst: int = 5) -> dict[str, Any]:
    """The comparison as JSON-ready values, with both reports."""
    found = compared.comparison
    return {
        "records": found.n,
        "fails": found.fails,
        "changed": found.changed,
        "mended": compared.mended,
        "broken": compared.broken,
        "differences": {
            d.name.lower().replace(" ", "_"): {**asdict(d), "clear": d.is_clear, "sentence": d.sentence()}
            for d in found.differences
        },
        "changed_records": [
            {"first": _disagreement(before), "second": _disagreement(after), "broken": after.disagrees}
            for before, after in compared.changed[:worst]
        ],
        "first": as_json(compared.first, worst=worst),
        "second": as_json(compared.second, worst=worst),
    }


def _disagreement(row: CalibrationRow) -> dict[str, Any]:
    score = row.score
    return {
        "item_id": row.item_id,
        "line": row.item.line or None,
        "label": row.label,
        "score": None if score is None else score.value,
        "passed": None if score is None else score.passed,
        "judge_explanation": None if score is None else score.explanation,
        "note": row.note,
        "cluster": row.cluster,
        "stratum": row.stratum,
    }


def _row(name: str, statistic: Statistic, note: str, *, share: bool) -> TableRow:
    if statistic.value is None:
        return TableRow(name=name, value="–", interval="", note=statistic.reason or "")
    if statistic.lower is None and statistic.reason:
        note = f"{note}; {statistic.reason}" if note else statistic.reason
    if name.startswith("bias of pass"):
        return TableRow(name=name, value=f"{100 * statistic.value:+.1f} points", interval=_points(statistic), note=note)
    value = f"{statistic.value:.0%}" if share else f"{statistic.value:z.2f}"
    return TableRow(name=name, value=value, interval=_percents(statistic) if share else _numbers(statistic), note=note)


def _shown(statistic: Statistic, *, share: bool) -> str:
    if statistic.value is None:
        return "–"
    value, interval = (
        (f"{statistic.value:.0%}", _percents(statistic)) if share else (f"{statistic.value:.2f}", _numbers(statistic))
    )
    return f"{value} ({interval})" if interval else value


def _percents(statistic: Statistic) -> str:
    if statistic.lower is None or statistic.upper is None:
        return ""
    return f"{100 * statistic.lower:.0f}–{100 * statistic.upper:.0f}%"


def _numbers(statistic: Statistic) -> str:
    if statistic.lower is None or statistic.upper is None:
        return ""
    return f"{statistic.lower:z.2f} to {statistic.upper:z.2f}"


def _points(statistic: Statistic) -> str:
    if statistic.lower is None or statistic.upper is None:
        return ""
    return f"{100 * statistic.lower:+.0f} to {100 * statistic.upper:+.0f} points"
