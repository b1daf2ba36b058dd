"""The rules of one rubric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.alerts._rules import Alert, AlertPolicy, Group, Recording, Rule, number
from assay.windows import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.rubrics import Rubric

#: What two series of one rubric have in common, whatever cohort, window or state.
_ON = "on (app, rubric, rubric_version, judge)"

#: A page when so much of the error budget goes in an hour, a ticket when so much goes in a day.
#: Beyer et al., The Site Reliability Workbook, chapter 5.
FAST_SHARE, SLOW_SHARE = 0.02, 0.1

_FAILING, _FAILING_LEAST, _FAILING_TIMES = 0.1, 0.02, 4
_WEEKLY_DROP, _WEEKLY_RECORDS = 0.05, 500

_WHO = "{{ $labels.app }}: {{ $labels.rubric }} ({{ $labels.rubric_version }}, {{ $labels.judge }})"
_RATIO = '{{ $value | printf "%.3f" }}'


def burn_threshold(objective: float, burn: float) -> float:
    """Pass ratio below which the error budget burns `burn` times too fast, both in (0, 1) and above 1.

    With a loose objective such a burn needs more failures than there are answers: nothing can fail 14 times as often
    as one time in ten. So at the latest half of what should pass not passing is enough.
    """
    return max(1.0 - burn * (1.0 - objective), objective / 2)


def rubric_groups(rubric: Rubric, policy: AlertPolicy) -> list[Group]:
    """The rules of a rubric: one group, and one for its slow weekly average."""
    name = f"assay-rubric-{rubric.name}"
    rules: list[Rule] = [
        *_failure_shares(rubric.name, policy),
        _drop(rubric.name, policy),
        *_objective_rules(rubric, policy),
        _judge_changed(rubric.name),
        *_calibration_stale(rubric.name, policy),
        _judge_failing(rubric.name, policy),
    ]
    # Slower than five minutes, and Prometheus would take the recorded series for gone.
    weekly = Group(name=f"{name}-weekly", interval=policy.span(4 * MINUTE), rules=list(_weekly(rubric.name, policy)))
    return [Group(name=name, rules=rules), weekly]


def _active(rubric: str) -> str:
    """A version that waits at its gate is measured, but is not what production is held to."""
    return f'unless on (rubric, rubric_version, judge) assay_rubric_state{{rubric="{rubric}", state="waiting"}} == 1'


def _enough(rubric: str, window: str, policy: AlertPolicy) -> str:
    least = policy.min_records
    return f'and {_ON} assay_app_window_effective_records{{rubric="{rubric}", window="{window}"}} >= {least}'


def _drop(rubric: str, policy: AlertPolicy) -> Alert:
    increase = f"increase(assay_defects_weighted_total{{app=%q,rubric=%q}}[{policy.span(HOUR)}])"
    worst = (
        f'{{{{ range query (printf "topk(3, sum by (defect) ({increase})) > 0" $labels.app $labels.rubric) }}}}'
        '{{ .Labels.defect }} {{ .Value | printf "%.0f" }}; {{ end }}'
    )
    return Alert(
        alert="AssayQualityDrop",
        expr=f"""
            assay_change_alarm{{rubric="{rubric}"}} == 1
            {_enough(rubric, policy.windows[2], policy)}
            {_active(rubric)}""",
        # A canary is run at once on an alarm; so long it has to say that it was the judge.
        for_=policy.span(5 * MINUTE),
        severity="page",
        about="quality",
        summary=f"{_WHO}: the pass ratio has dropped",
        description="The change detector is sure that fewer answers pass than must. `assay changes list` says since "
        f"when and how many. Defects of the last hour, in interactions: {worst}",
    )


def _objective_rules(rubric: Rubric, policy: AlertPolicy) -> Iterator[Alert]:
    if rubric.objective is None:
        return
    short, middle, long = policy.windows
    fast = burn_threshold(rubric.objective, FAST_SHARE * policy.budget_days * 24)
    slow = burn_threshold(rubric.objective, SLOW_SHARE * policy.budget_days)
    yield _burn(rubric, policy, "fast", middle, short, fast)
    yield _burn(rubric, policy, "slow", long, middle, slow)
    yield _below_objective(rubric.name, rubric.objective, long, policy)


def _burn(rubric: Rubric, policy: AlertPolicy, burn: str, long: str, short: str, threshold: float) -> Alert:
    name, bound = rubric.name, number(round(threshold, 4))
    share, over = (FAST_SHARE, "an hour") if burn == "fast" else (SLOW_SHARE, "a day")
    return Alert(
        alert="AssayQualityBudgetBurn",
        # Surely so over the long window, and still so in the short one, which ends the alert soon after a mend.
        expr=f"""
            assay_app_pass_ratio_ci_upper{{rubric="{name}", window="{long}"}} < {bound}
            and {_ON} assay_app_pass_ratio{{rubric="{name}", window="{short}"}} < {bound}
            {_enough(name, long, policy)}
            {_active(name)}""",
        for_=policy.span(2 * MINUTE if burn == "fast" else 15 * MINUTE),
        # A short window holds few records: one that passes is no mend.
        keep_firing_for=policy.span(10 * MINUTE if burn == "fast" else HOUR),
        severity="page" if burn == "fast" else "ticket",
        about="quality",
        labels={"burn": burn},
        summary=f"{_WHO}: at most {_RATIO} pass over {long}",
        description=f"The objective is {number(rubric.objective or 0)}. Below {bound}, {share:.0%} of the error budget "
        f"of {number(policy.budget_days)} days goes in {over}, or half of what should pass does not. "
        "The value is the upper end of the 95 % interval.",
    )


def _below_objective(rubric: str, objective: float, window: str, policy: AlertPolicy) -> Alert:
    where = f'rubric="{rubric}", window="{window}"'
    return Alert(
        alert="AssayQualityBelowObjective",
        expr=f"""
            assay_app_pass_ratio_corrected_ci_upper{{{where}}} < {number(objective)}
            and {_ON} assay_app_calibration_state{{{where}, state="ok"}} == 1
            {_enough(rubric, window, policy)}
            {_active(rubric)}""",
        for_=policy.span(15 * MINUTE),
        keep_firing_for=policy.span(HOUR),
        severity="ticket",
        about="quality",
        summary=f"{_WHO}: people would pass at most {_RATIO} over {window}",
        description=f"The objective is {number(objective)}, and even the upper end of the interval of the corrected "
        "pass ratio is below it. The calibration is in order, so this is the level, not the judge's error.",
    )


def _judge_changed(rubric: str) -> Alert:
    return Alert(
        alert="AssayJudgeChanged",
        # No wait: it must be there before the page that it inhibits.
        expr=f'assay_drift_verdict{{rubric="{rubric}", verdict="judge"}} == 1',
        severity="ticket",
        about="judge",
        summary="{{ $labels.rubric }} ({{ $labels.rubric_version }}, {{ $labels.judge }}): the judge has changed",
        description="The judge reads the same records differently, or was replaced: what the gauges show says nothing "
        "about the product. Quality alerts of this rubric are inhibited for as long.",
    )


def _calibration_stale(rubric: str, policy: AlertPolicy) -> Iterator[Alert]:
    days = policy.calibration_days
    window = policy.windows[2]
    who = "{{ $labels.rubric }} ({{ $labels.rubric_version }}, {{ $labels.judge }})"
    yield Alert(
        alert="AssayCalibrationStale",
        expr=f'assay_calibration_age_seconds{{rubric="{rubric}"}} > {number(days)} * {DAY}',
        for_=policy.span(HOUR),
        severity="ticket",
        about="judge",
        labels={"cause": "age"},
        summary=f"{who}: the newest label is old",
        description=f"More than {number(days)} days have gone since anybody checked this judge. Label again.",
    )
    yield Alert(
        alert="AssayCalibrationStale",
        expr=f"""
            assay_app_calibration_state{{rubric="{rubric}", window="{window}", state="stale"}} == 1
            {_enough(rubric, window, policy)}""",
        for_=policy.span(HOUR),
        severity="ticket",
        about="judge",
        labels={"cause": "audit"},
        summary=f"{who}: fresh labels refute the calibration",
        description="The correction holds no more, so that nothing alerts on the level. Calibrate again.",
    )


def _failure_shares(rubric: str, policy: AlertPolicy) -> Iterator[Recording]:
    for name, seconds in (("30m", 30 * MINUTE), ("1d", DAY)):
        range_ = policy.span(seconds)
        yield Recording(
            record=f"rubric_judge_kind:assay_failures:ratio_rate{name}",
            expr=f"""
                sum by (rubric, judge, kind) (rate(assay_failures_total{{rubric="{rubric}"}}[{range_}]))
                / on (rubric, judge) group_left
                sum by (rubric, judge) (
                  rate(assay_evaluations_total{{rubric="{rubric}", outcome=~"scored|failed"}}[{range_}])
                )""",
        )


def _judge_failing(rubric: str, policy: AlertPolicy) -> Alert:
    now = f'rubric_judge_kind:assay_failures:ratio_rate30m{{rubric="{rubric}"}}'
    day = f'rubric_judge_kind:assay_failures:ratio_rate1d{{rubric="{rubric}"}}'
    evaluations = f'assay_evaluations_total{{rubric="{rubric}", outcome=~"scored|failed"}}'
    return Alert(
        alert="AssayJudgeFailing",
        expr=f"""
            (
              {now} > {_FAILING}
              or
              (
                {now} > {_FAILING_LEAST}
                and {now} > {_FAILING_TIMES} * {day}
              )
            )
            and on (rubric, judge)
            sum by (rubric, judge) (increase({evaluations}[{policy.span(30 * MINUTE)}])) >= {policy.min_records}""",
        for_=policy.span(10 * MINUTE),
        severity="ticket",
        about="evaluator",
        summary='{{ $labels.rubric }} ({{ $labels.judge }}): {{ $value | printf "%.3f" }} of evaluations end in '
        "{{ $labels.kind }}",
        description="A failure is no score: what fails is missing from the gauges, and perhaps not at random. "
        f"More than {_FAILING:.0%} fail, or {_FAILING_TIMES} times as many as over the day.",
    )


def _weekly(rubric: str, policy: AlertPolicy) -> Iterator[Recording | Alert]:
    where = f'{{rubric="{rubric}", window="{policy.windows[2]}"}}'
    range_ = f"[{policy.span(7 * DAY)}:{policy.span(HOUR)}]"
    interactions = f"assay_app_window_interactions{where}"
    yield Recording(
        record="app_rubric:assay_score_mean:weekly",
        # Weighted by interactions, so that it is the mean of all of them and a quiet day counts for little.
        expr=f"""
            sum_over_time((assay_app_score_mean{where} * {interactions}){range_})
            / (sum_over_time({interactions}{range_}) > 0)""",
    )
    yield Recording(
        record="app_rubric:assay_effective_records:weekly",
        # Each record is in a day's worth of these windows.
        expr=f"sum_over_time(assay_app_window_effective_records{where}{range_}) / 24",
    )
    mean = f'app_rubric:assay_score_mean:weekly{{rubric="{rubric}"}}'
    records = f'app_rubric:assay_effective_records:weekly{{rubric="{rubric}"}}'
    week = policy.span(7 * DAY)
    yield Alert(
        alert="AssayWeeklyAverageDown",
        expr=f"""
            {mean} < {number(1 - _WEEKLY_DROP)} * ({mean} offset {week})
            and {records} >= {_WEEKLY_RECORDS}
            and {records} offset {week} >= {_WEEKLY_RECORDS}
            {_active(rubric)}""",
        for_=policy.span(HOUR),
        severity="ticket",
        about="quality",
        summary=f"{_WHO}: the weekly average is down to {_RATIO}",
        description=f"The mean score of the last seven days is over {_WEEKLY_DROP:.0%} lower than that of the seven "
        "days before.",
    )
