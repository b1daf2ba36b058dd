"""The rules of what no rubric has of its own: the evaluator, its cost, and delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.alerts._rules import Alert, AlertPolicy, Group, Recording, number
from assay.budgets import THINNED
from assay.cascade import PASSED_OVER
from assay.windows import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = '{{ $value | printf "%.0f" }} s'
_COUNT = '{{ $value | printf "%.0f" }}'
_COST_TIMES = 2
_BUDGET_LEFT = 0.1


def evaluator_group(policy: AlertPolicy) -> Group:
    """Whether scores come at all."""
    return Group(name="assay-evaluator", rules=[*_blind(policy), *_evaluator(policy)])


def _blind(policy: AlertPolicy) -> Iterator[Alert]:
    span = policy.span
    description = (
        "Nobody sees now how good the answers are: the gauges end, they do not stay as they were. "
        "No quality alert can fire."
    )

    def blind(cause: str, expr: str, for_: float, summary: str) -> Alert:
        return Alert(
            alert="AssayEvaluatorBlind",
            expr=expr,
            for_=span(for_),
            severity="page",
            about="evaluator",
            labels={"cause": cause},
            summary=summary,
            description=description,
        )

    half_hour = 30 * MINUTE
    scored = 'assay_evaluations_total{outcome="scored"}'
    # Records that nobody was asked for, to spend less, are no sign of a judge that lives.
    not_applicable = f'assay_not_applicable_total{{reason!~"{PASSED_OVER}|{THINNED}"}}'
    yield blind(
        "no_scores",
        f"""
            sum(increase(assay_queue_accepted_total[{span(half_hour)}])) > 0
            unless on () sum(increase({scored}[{span(half_hour)}])) > 0
            unless on () sum(increase({not_applicable}[{span(half_hour)}])) > 0
            unless on () time() - max(assay_last_score_timestamp_seconds) < {policy.seconds(half_hour)}""",
        10 * MINUTE,
        f"Records come ({_COUNT} in the last half hour), and none is scored",
    )
    yield blind(
        "backlog",
        f"max(assay_oldest_pending_seconds) > {policy.seconds(policy.pending_seconds)}",
        5 * MINUTE,
        f"A record has waited for its score for {_SECONDS}",
    )
    yield blind(
        "worker_gone",
        # A worker that nobody scrapes never was there; one without work may be away.
        f"""
            count(last_over_time(assay_judge_info[{span(6 * HOUR)}]))
            unless on () count(assay_judge_info)
            and on () max(assay_queue_records) > 0""",
        5 * MINUTE,
        "No worker is there, and records wait",
    )
    yield blind("exporter_gone", "absent(assay_up)", 5 * MINUTE, "No exporter is there")
    yield blind(
        "component_away",
        "min by (component) (assay_up) == 0",
        5 * MINUTE,
        "The exporter cannot read the {{ $labels.component }}",
    )


def _evaluator(policy: AlertPolicy) -> Iterator[Alert]:
    span = policy.span
    yield Alert(
        alert="AssayEvaluatorBehind",
        expr=f"""
            max(assay_oldest_pending_seconds) > {policy.seconds(policy.pending_seconds / 3)}
            and on () max(deriv(assay_queue_records[{span(30 * MINUTE)}])) > 0""",
        for_=span(15 * MINUTE),
        severity="ticket",
        about="evaluator",
        summary=f"Records wait for {_SECONDS}, and the queue grows",
        description="Workers do not keep up: the gauges of the last minutes are of few records, and late.",
    )
    yield Alert(
        alert="AssayJudgeReplaced",
        expr=f"""
            count by (judge, judge_fingerprint) (assay_judge_info)
            unless on (judge, judge_fingerprint) last_over_time(assay_judge_info[{span(HOUR)}] offset {span(HOUR)})
            and on (judge) last_over_time(assay_judge_info[{span(HOUR)}] offset {span(HOUR)})""",
        severity="info",
        about="judge",
        summary="{{ $labels.judge }}: a judge with another fingerprint scores now",
        description="Model, endpoint, prompt or parser is another than an hour ago: calibrations of the old one do not "
        "hold for it.",
    )
    yield Alert(
        alert="AssayCanaryStale",
        expr=f"assay_canary_age_seconds > {policy.seconds(3 * policy.canary_hours * HOUR)}",
        for_=span(HOUR),
        severity="ticket",
        about="judge",
        summary=f"{{{{ $labels.rubric }}}} ({{{{ $labels.judge }}}}): the canary last ran {_SECONDS} ago",
        description="Three runs are missing. Without them a changed judge looks like a changed product.",
    )
    yield Alert(
        alert="AssaySeriesOverflow",
        expr=f"max(increase(assay_series_overflow_total[{span(HOUR)}])) > 0",
        keep_firing_for=span(HOUR),
        severity="info",
        about="evaluator",
        summary=f"{_COUNT} records of the last hour count under `other`",
        description="There are more label sets than ASSAY_MAX_SERIES: a cohort label has too many values.",
    )


def cost_group(policy: AlertPolicy) -> Group:
    """What judging costs."""
    rules: list[Alert | Recording] = []
    for name, seconds in (("1h", HOUR), ("7d", 7 * DAY)):
        range_ = policy.span(seconds)
        rules.append(
            Recording(
                record=f"rubric_judge:assay_evaluation_cost_usd:mean{name}",
                expr=f"""
                    sum by (rubric, judge) (increase(assay_evaluation_cost_usd_total[{range_}]))
                    / (sum by (rubric, judge) (
                      increase(assay_evaluations_total{{outcome=~"scored|failed"}}[{range_}])
                    ) > 0)""",
            )
        )
    evaluations = f'increase(assay_evaluations_total{{outcome=~"scored|failed"}}[{policy.span(HOUR)}])'
    rules += [
        Alert(
            alert="AssayJudgeCostHigh",
            expr=f"""
                rubric_judge:assay_evaluation_cost_usd:mean1h
                > {_COST_TIMES} * rubric_judge:assay_evaluation_cost_usd:mean7d
                and on (rubric, judge) sum by (rubric, judge) ({evaluations}) >= {policy.min_records}""",
            for_=policy.span(30 * MINUTE),
            severity="ticket",
            about="cost",
            summary='{{ $labels.rubric }} ({{ $labels.judge }}): {{ $value | printf "%.5f" }} USD a record',
            description=f"Over {_COST_TIMES} times the mean of the last seven days.",
        ),
        Alert(
            alert="AssayBudgetNearlySpent",
            # Of USD or tokens, whichever is nearer its end.
            expr=f"1 - max by (budget) (assay_budget_used_ratio) < {number(_BUDGET_LEFT)}",
            severity="ticket",
            about="cost",
            summary='{{ $labels.budget }}: {{ $value | printf "%.3f" }} of the budget is left',
            description="When it is spent, records go without a score.",
        ),
    ]
    return Group(name="assay-cost", rules=rules)


def delivery_group(policy: AlertPolicy) -> Group:
    """What is lost or stuck on the way in and out."""
    span = policy.span

    def appeared(by: str, series: str, seconds: float, *, component: str) -> str:
        """More of a counter, or the counter itself: one that is born with its first event shows no increase.

        It is not born where another exporter had it, or this one before a read that failed; and nothing can be said
        where no exporter could read the component before.
        """
        range_, before = span(seconds), f"[{span(6 * HOUR)}] offset {span(seconds)}"
        return f"""
            max by ({by}) (increase({series}[{range_}])) > 0
            or
            (
              max by ({by}) ({series}) > 0
              unless on ({by}) max by ({by}) (last_over_time({series}{before}))
              and on () max(max_over_time(assay_up{{component="{component}"}}{before})) > 0
            )"""

    rules = [
        Alert(
            alert="AssaySinkBacklog",
            expr=f"max by (sink) (assay_outbox_oldest_seconds) > {policy.seconds(30 * MINUTE)}",
            for_=span(15 * MINUTE),
            severity="ticket",
            about="delivery",
            summary=f"{{{{ $labels.sink }}}} is {_SECONDS} behind",
            description="Evaluations are owed to this sink and do not get there. Gauges do not depend on it.",
        ),
        Alert(
            alert="AssaySinkRejects",
            expr=appeared(
                "sink, outcome", 'assay_sink_writes_total{outcome=~"rejected|expired"}', HOUR, component="database"
            ),
            for_=span(5 * MINUTE),
            severity="ticket",
            about="delivery",
            summary=f"{{{{ $labels.sink }}}}: {_COUNT} evaluations {{{{ $labels.outcome }}}}",
            description="They are set aside, and nothing tries them again by itself.",
        ),
        Alert(
            alert="AssayClientDrops",
            expr=appeared("app, reason", "assay_client_dropped_total", 15 * MINUTE, component="redis"),
            keep_firing_for=span(15 * MINUTE),
            severity="ticket",
            about="delivery",
            summary=f"{{{{ $labels.app }}}} dropped {_COUNT} records: {{{{ $labels.reason }}}}",
            description="They were sampled and never reached the queue. The app itself was not held up.",
        ),
        Alert(
            alert="AssayDeadLetters",
            expr=appeared("reason", "assay_dead_letters_total", HOUR, component="database"),
            severity="ticket",
            about="delivery",
            summary=f"{_COUNT} records are dead letters: {{{{ $labels.reason }}}}",
            description="They cannot be scored as they are, and are kept to be mended and replayed.",
        ),
    ]
    return Group(name="assay-delivery", rules=rules)
