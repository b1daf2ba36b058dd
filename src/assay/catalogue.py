"""What every metric is called and means: the reference, and the names that the rest of assay publishes under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from assay.signals import NUMBERS, WORDS, YES_NO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_Type = Literal["counter", "gauge", "histogram", "info"]
_Process = Literal["exporter", "worker", "collector"]

#: The label set of everything that is about scores; the declared cohort labels come after it.
SCORE_LABELS = ("app", "rubric", "rubric_version", "judge")

#: The label set of everything that is about a rubric and the judge it is asked of.
INSTRUMENT_LABELS = ("rubric", "rubric_version", "judge")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDoc:
    """One metric family: its name in PromQL (of histograms without suffix), its labels in order, and what it means."""

    name: str
    type: _Type
    help: str
    labels: tuple[str, ...] = ()
    #: the declared cohort labels come after the labels of scores
    cohort: bool = False
    process: _Process = "exporter"

    @property
    def family(self) -> str:
        """Name of the family in OpenMetrics, which leaves out `_total` and `_info`."""
        suffix = {"counter": "_total", "info": "_info"}.get(self.type, "")
        return self.name.removesuffix(suffix)

    def label_names(self, cohort_labels: Sequence[str]) -> tuple[str, ...]:
        """All labels, with the declared cohort labels where they apply."""
        if not self.cohort:
            return self.labels
        # They come after what they have in common with scores.
        common = sum(name in SCORE_LABELS for name in self.labels)
        return (*self.labels[:common], *cohort_labels, *self.labels[common:])


def _exporter(name: str, type_: _Type, help_: str, *labels: str, cohort: bool = False) -> MetricDoc:
    return MetricDoc(name=name, type=type_, help=help_, labels=labels, cohort=cohort)


def _worker(name: str, type_: _Type, help_: str, *labels: str) -> MetricDoc:
    return MetricDoc(name=name, type=type_, help=help_, labels=labels, process="worker")


def _collector(name: str, type_: _Type, help_: str, *labels: str) -> MetricDoc:
    return MetricDoc(name=name, type=type_, help=help_, labels=labels, process="collector")


def _windowed(prefix: str, of: str, *, cohort: bool) -> tuple[MetricDoc, ...]:
    """The gauges of one rolling window, over each label set or over each app."""

    def gauge(name: str, help_: str) -> MetricDoc:
        return _exporter(f"{prefix}{name}", "gauge", help_, *SCORE_LABELS, "window", cohort=cohort)

    return (
        gauge("pass_ratio", f"Estimated share of {of} that pass, weighted by 1 / sampling probability."),
        gauge("pass_ratio_ci_lower", "Lower bound of the 95 % Wilson interval of the pass ratio."),
        gauge("pass_ratio_ci_upper", "Upper bound of the 95 % Wilson interval of the pass ratio."),
        gauge("pass_ratio_unweighted", "Share of the scored records that passed: biased where sampling rates differ."),
        gauge("score_mean", f"Estimated mean score (0 to 1) of {of}, weighted by 1 / sampling probability."),
        gauge("score_mean_ci_lower", "Lower bound of the 95 % interval of the mean score."),
        gauge("score_mean_ci_upper", "Upper bound of the 95 % interval of the mean score."),
        gauge("window_records", "Records scored in the window, by the time of the interaction."),
        gauge(
            "window_effective_records",
            "Equally weighted records that would tell as much about the pass ratio: guard alerts with it.",
        ),
        gauge(
            "window_interactions", "Interactions that the scored records stand for: sum of 1 / sampling probability."
        ),
        gauge("pass_ratio_corrected", f"Estimated share of {of} that people would pass; only where that can be said."),
        gauge("pass_ratio_corrected_ci_lower", "Lower bound of its 95 % interval: window and calibration."),
        gauge("pass_ratio_corrected_ci_upper", "Upper bound of its 95 % interval: window and calibration."),
        gauge(
            "pass_ratio_corrected_window_ci_lower",
            "Lower bound as if the calibration were exact: for comparing windows, which share its error.",
        ),
        gauge(
            "pass_ratio_corrected_window_ci_upper",
            "Upper bound as if the calibration were exact: for comparing windows, which share its error.",
        ),
        _exporter(
            f"{prefix}calibration_state",
            "gauge",
            "1 for the state of the corrected pass ratio, else 0: ok, too_wide, stale, no_calibration or refused.",
            *SCORE_LABELS,
            "window",
            "state",
            cohort=cohort,
        ),
        _exporter(
            f"{prefix}correction_info",
            "info",
            "How the pass ratio is corrected, and why it is in its state when that is not `ok`.",
            *SCORE_LABELS,
            "window",
            "method",
            "reason",
            cohort=cohort,
        ),
    )


def _measured(name: str, what: str, *more: str) -> tuple[MetricDoc, ...]:
    """What was measured of a judge, with its interval; `more` labels than those of instruments."""
    labels = (*INSTRUMENT_LABELS, *more)
    return (
        _exporter(name, "gauge", f"{what}.", *labels),
        _exporter(f"{name}_ci_lower", "gauge", "Lower bound of its 95 % interval.", *labels),
        _exporter(f"{name}_ci_upper", "gauge", "Upper bound of its 95 % interval.", *labels),
    )


def _with_interval(name: str, what: str, *labels: str) -> tuple[MetricDoc, ...]:
    """A gauge of each label set with its interval, which is there only where there are enough records for one."""
    return (
        _exporter(name, "gauge", what, *labels, cohort=True),
        _exporter(f"{name}_ci_lower", "gauge", "Lower bound of its 95 % interval.", *labels, cohort=True),
        _exporter(f"{name}_ci_upper", "gauge", "Upper bound of its 95 % interval.", *labels, cohort=True),
    )


#: Every metric that assay publishes, in the order of the reference.
DOCUMENTED: tuple[MetricDoc, ...] = (
    *_windowed("assay_", "interactions with this label set", cohort=True),
    *_windowed("assay_app_", "all interactions of the app", cohort=False),
    *_with_interval(
        "assay_signal_share",
        "Estimated share of interactions that show a signal, weighted by 1 / sampling probability; no judge is asked.",
        "app",
        "signal",
        "window",
    ),
    *_with_interval(
        "assay_signal_mean",
        "Estimated mean of a signal that is a number, weighted by 1 / sampling probability.",
        "app",
        "signal",
        "window",
    ),
    _exporter(
        "assay_signal_effective_records",
        "gauge",
        "Equally weighted records that would tell as much about the signal: guard alerts with it.",
        "app",
        "signal",
        "window",
        cohort=True,
    ),
    *_with_interval(
        "assay_cost_per_interaction_usd",
        "Estimated mean cost of an interaction to its app, in US dollars, where records say it.",
        "app",
        "window",
    ),
    *_with_interval(
        "assay_cost_per_passed_interaction_usd",
        "What all interactions cost for each one that passes the rubric, in US dollars.",
        "app",
        "rubric",
        "window",
    ),
    _exporter(
        "assay_input_shift_p_value",
        "gauge",
        "Probability of so different an input in the last 24 whole hours, had nothing changed since the reference.",
        "app",
        "feature",
    ),
    _exporter(
        "assay_input_shift_psi",
        "gauge",
        "Population stability index of the input against the reference week: how large the difference is.",
        "app",
        "feature",
    ),
    _exporter(
        "assay_input_shift_psi_critical",
        "gauge",
        "Index above which the difference is more than chance, at a level of 0.001.",
        "app",
        "feature",
    ),
    _exporter(
        "assay_window_pending_records",
        "gauge",
        "Records enqueued since the window began that have no score yet: the window may still move.",
        "window",
    ),
    _exporter(
        "assay_score", "histogram", "Scores (0 to 1) since the store began, unweighted.", *SCORE_LABELS, cohort=True
    ),
    _exporter(
        "assay_evaluations_total",
        "counter",
        "Evaluations stored, each once: scored, failed or not_applicable.",
        *SCORE_LABELS,
        "outcome",
        cohort=True,
    ),
    _exporter(
        "assay_recovered_total",
        "counter",
        "Failures that a replay replaced; both outcomes count: records = scored + failed + not_applicable - recovered.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter("assay_failures_total", "counter", "Evaluations without a verdict.", *SCORE_LABELS, "kind", cohort=True),
    _exporter(
        "assay_not_applicable_total",
        "counter",
        "Evaluations of records that the rubric does not apply to, or that a cascade or a budget left out.",
        *SCORE_LABELS,
        "reason",
        cohort=True,
    ),
    _exporter(
        "assay_defects_total",
        "counter",
        "Scores that did not pass, by what was wrong with the answer; less the moved ones: of the class now.",
        *SCORE_LABELS,
        "defect",
        cohort=True,
    ),
    _exporter(
        "assay_defects_weighted_total",
        "counter",
        "Interactions that they stand for: sum of 1 / sampling probability.",
        *SCORE_LABELS,
        "defect",
        cohort=True,
    ),
    _exporter(
        "assay_defects_moved_total",
        "counter",
        "Of those, what a person has put into another class since, where it is counted again.",
        *SCORE_LABELS,
        "defect",
        cohort=True,
    ),
    _exporter(
        "assay_defects_moved_weighted_total",
        "counter",
        "Interactions that the moved ones stand for: sum of 1 / sampling probability.",
        *SCORE_LABELS,
        "defect",
        cohort=True,
    ),
    _exporter(
        "assay_evaluation_tokens_total",
        "counter",
        "Tokens that the stored evaluations took, prompt or completion; repeated calls are not in it.",
        *SCORE_LABELS,
        "direction",
        cohort=True,
    ),
    _exporter(
        "assay_evaluation_cost_usd_total",
        "counter",
        "What the stored evaluations cost, in US dollars, as far as prices are known.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter(
        "assay_last_score_timestamp_seconds",
        "gauge",
        "When the latest score was stored: a flat gauge with an old timestamp is no sign of health.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter(
        "assay_records_total",
        "counter",
        "Records that reached the store: received, each once, by app; duplicate when delivered again, without an app.",
        "app",
        "outcome",
    ),
    _exporter(
        "assay_budget_limit_usd", "gauge", "What a budget allows in its hour, day or month, in US dollars.", "budget"
    ),
    _exporter("assay_budget_limit_tokens", "gauge", "The same in tokens, prompt and completion together.", "budget"),
    _exporter(
        "assay_budget_remaining_usd", "gauge", "What may still be reserved: neither spent nor held, in USD.", "budget"
    ),
    _exporter("assay_budget_remaining_tokens", "gauge", "The same in tokens.", "budget"),
    _exporter(
        "assay_budget_reserved_usd", "gauge", "What is held for requests under way: the most they can cost.", "budget"
    ),
    _exporter("assay_budget_reserved_tokens", "gauge", "The same in tokens.", "budget"),
    _exporter(
        "assay_budget_used_ratio",
        "gauge",
        "Share of a budget that is spent; of one in USD and tokens the larger. Thinning goes by it.",
        "budget",
    ),
    _exporter("assay_budget_reset_timestamp_seconds", "gauge", "When a budget starts anew.", "budget"),
    _exporter(
        "assay_budget_thinned_total",
        "counter",
        "Records left out near a budget's cap; those that were judged weigh more for it.",
        "app",
        "rubric",
    ),
    _exporter("assay_queue_records", "gauge", "Records on the queue: waiting, being judged or due for a retry."),
    _exporter("assay_queue_batches", "gauge", "Batches on the queue."),
    _exporter("assay_queue_ragas_records", "gauge", "Of `assay_queue_records`, those for workers that have ragas."),
    _exporter("assay_queue_accepted_total", "counter", "Records that the queue has taken from clients."),
    _exporter("assay_oldest_pending_seconds", "gauge", "Age of the oldest record on the queue; 0 when it is empty."),
    _exporter(
        "assay_client_records_total",
        "counter",
        "What clients report of records: taken, sampled_out, thinned (left out as the queue was nearly full) or sent. "
        "Apps over the bound count as app `other`.",
        "app",
        "outcome",
    ),
    _exporter("assay_client_dropped_total", "counter", "Records that clients dropped.", "app", "reason"),
    _exporter("assay_dead_letters_waiting", "gauge", "Dead letters kept and not replayed.", "reason"),
    _exporter("assay_dead_letters_total", "counter", "Records set aside as dead letters.", "reason"),
    _exporter("assay_outbox_waiting", "gauge", "Evaluations that are owed to a sink and not delivered yet.", "sink"),
    _exporter(
        "assay_outbox_oldest_seconds",
        "gauge",
        "How long the oldest of them has been owed; 0 when there is none.",
        "sink",
    ),
    _exporter(
        "assay_outbox_rejected",
        "gauge",
        "Evaluations set aside: the sink refused them, or was tried for too long.",
        "sink",
    ),
    _exporter(
        "assay_sink_writes_total",
        "counter",
        "Evaluations by what came of each try: delivered, retried, rejected, expired (given up), or skipped (nothing "
        "to attach it to).",
        "sink",
        "outcome",
    ),
    _exporter("assay_series", "gauge", "Label sets (app and cohort labels) in use; bounded by ASSAY_MAX_SERIES."),
    _exporter(
        "assay_series_overflow_total",
        "counter",
        "Records counted under `other` because the label sets were at their bound.",
    ),
    _exporter(
        "assay_objective_ratio",
        "gauge",
        "Pass ratio that the rubric sets as its objective.",
        "rubric",
        "rubric_version",
    ),
    _exporter("assay_pass_threshold_ratio", "gauge", "Least score that passes the rubric.", "rubric", "rubric_version"),
    _exporter(
        "assay_rubric_info",
        "info",
        "Rubrics of this exporter, and of the workers.",
        "rubric",
        "rubric_version",
        "title",
    ),
    _exporter(
        "assay_rubric_state",
        "gauge",
        "1 for the state of a version, else 0: active, or waiting for the calibration that its gate asks for. "
        "Labels that an active version has are active, whatever else waits under them.",
        *INSTRUMENT_LABELS,
        "state",
    ),
    _exporter(
        "assay_calibration_info",
        "info",
        "The calibration that counts: how and by whom its records were chosen and labelled.",
        *INSTRUMENT_LABELS,
        "calibration",
        "rubric_hash",
        "judge_fingerprint",
        "selection",
        "annotators",
        "synthetic",
    ),
    _exporter(
        "assay_calibration_level",
        "gauge",
        "1 for what the labels allow the judge to be used for, else 0: no_data, unusable, trend_only, calibrated or "
        "human_like.",
        *INSTRUMENT_LABELS,
        "level",
    ),
    _exporter(
        "assay_calibration_age_seconds",
        "gauge",
        "Age of the newest label; where labels have no date, of the calibration.",
        *INSTRUMENT_LABELS,
    ),
    _exporter(
        "assay_calibration_labels",
        "gauge",
        "Labelled records behind the calibration, by what people say: pass or fail.",
        *INSTRUMENT_LABELS,
        "class",
    ),
    *_measured("assay_judge_bias_ratio", "Judge's pass ratio less people's, when the labels were made"),
    *_measured("assay_judge_kappa", "Cohen's kappa of judge and people"),
    *_measured("assay_judge_fail_recall", "Of what people fail, the share that the judge flags"),
    *_measured("assay_judge_fail_precision", "Of what the judge flags, the share that people fail"),
    *_measured("assay_judge_youden", "Youden's J: how much of a true change the raw pass ratio shows"),
    *_measured(
        "assay_judge_attack_success_ratio",
        "Share of injected texts that sway the judge (`assay calibrate --attacks`), with fences and rules (on) or not",
        "defences",
    ),
    _exporter(
        "assay_judge_attacks",
        "gauge",
        "Those attacks by what came of them: succeeded, resisted, failed (no verdict), broken or unbroken (they aim at "
        "a failure), no_base (the record without them got a wrong verdict), not_judged.",
        *INSTRUMENT_LABELS,
        "defences",
        "outcome",
    ),
    _exporter("assay_judge_attack_age_seconds", "gauge", "Age of that run.", *INSTRUMENT_LABELS),
    _exporter(
        "assay_change_evidence",
        "gauge",
        "Log of the e-value that the pass ratio has dropped; absent while the detector learns what is usual.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter(
        "assay_change_threshold",
        "gauge",
        "Evidence at which there is an alarm: log of the records to a false one, by ASSAY_CHANGE_FALSE_ALARM_DAYS.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter(
        "assay_change_alarm",
        "gauge",
        "1 from a drop of the pass ratio until it has recovered, or the new level was accepted; else 0.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter(
        "assay_change_reference_ratio",
        "gauge",
        "Pass ratio that the detector holds the stream to: the objective, or the 99 % lower bound of what was usual.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter("assay_change_records_total", "counter", "Scores shown to the detector.", *SCORE_LABELS, cohort=True),
    _exporter(
        "assay_change_late_records_total",
        "counter",
        "Scores that came after the detector had read their minute, such as those of a backfill; it never sees them.",
        *SCORE_LABELS,
        cohort=True,
    ),
    _exporter(
        "assay_change_position_timestamp_seconds",
        "gauge",
        "The detectors have read all interactions before this moment.",
    ),
    _exporter(
        "assay_drift_verdict",
        "gauge",
        "1 for whose fault a change is, else 0: none, product, judge, or unknown while no canary can tell.",
        *INSTRUMENT_LABELS,
        "verdict",
    ),
    _exporter("assay_canary_age_seconds", "gauge", "Age of the latest canary run.", *INSTRUMENT_LABELS),
    _exporter("assay_canary_records", "gauge", "Records of the latest canary run with a score.", *INSTRUMENT_LABELS),
    _exporter(
        "assay_canary_difference",
        "gauge",
        "Pass ratio of the same fixed records, now less at the first run: what the judge itself has moved by.",
        *INSTRUMENT_LABELS,
    ),
    _exporter("assay_canary_difference_ci_lower", "gauge", "Lower bound of its 99 % interval.", *INSTRUMENT_LABELS),
    _exporter("assay_canary_difference_ci_upper", "gauge", "Upper bound of its 99 % interval.", *INSTRUMENT_LABELS),
    _exporter("assay_up", "gauge", "1 if the exporter could read the component at this scrape.", "component"),
    _exporter("assay_exporter_errors_total", "counter", "Reads of a component that failed.", "component"),
    _exporter("assay_exporter_read_seconds", "gauge", "Time that reading the component took.", "component"),
    _exporter("assay_build_info", "info", "Version of assay.", "version"),
    _worker(
        "assay_judge_request_seconds",
        "histogram",
        "Requests to the judge, by outcome: ok, cancelled or a failure kind. Exemplars carry the trace id.",
        "judge",
        "outcome",
    ),
    _worker("assay_judge_in_flight", "gauge", "Requests to the judge that wait for an answer.", "judge"),
    _worker("assay_judge_tokens_total", "counter", "Tokens, prompt or completion.", "judge", "direction"),
    _worker(
        "assay_judge_cached_tokens_total",
        "counter",
        "Prompt tokens that the provider took from its cache, where the endpoint says so. They are among the prompt "
        "tokens of assay_judge_tokens_total.",
        "judge",
    ),
    _worker("assay_judge_cost_usd_total", "counter", "Cost of the judge's requests, in US dollars.", "judge"),
    _worker(
        "assay_judge_unpriced_calls_total",
        "counter",
        "Requests that used tokens but whose model is not in the price table: the cost leaves them out.",
        "judge",
    ),
    _worker(
        "assay_judge_repeats_total",
        "counter",
        "Verdicts asked for beyond the first, where a rubric's `repeats` wanted them: ok, not_applicable, or the kind "
        "of failure. After budget, rate_limited, timeout, unavailable and unauthorized no more are asked for, and the "
        "score is that of the verdicts before.",
        "judge",
        "outcome",
    ),
    _worker(
        "assay_judge_reused_total",
        "counter",
        "Verdicts taken from a record with the same texts, for which no request was sent (ASSAY_REUSE_SECONDS).",
        "judge",
    ),
    _worker(
        "assay_judge_circuit_open",
        "gauge",
        "1 while the judge's endpoint counts as down: it is not asked, but for a probe now and then. As the worker last"
        " saw it.",
        "judge",
    ),
    _worker("assay_judge_info", "info", "Judges of this worker.", "judge", "judge_fingerprint"),
    _worker(
        "assay_batches_total",
        "counter",
        "Batches worked on, by how it ended; `late`: its call goes on without a thread, and it ends later;"
        " `limited`: back to the queue, for its turn under a rate limit is far off, or its endpoint down.",
        "outcome",
    ),
    _worker("assay_retries_total", "counter", "Records sent back to be judged again, by failure kind.", "kind"),
    _worker("assay_score_lag_seconds", "histogram", "Time from an interaction to its stored evaluations."),
    _worker("assay_commit_seconds", "histogram", "Time that one transaction of the store took."),
    # -- the receiver of traces
    _collector(
        "assay_collect_requests_total",
        "counter",
        "OTLP requests: ok, partial (some spans rejected), busy (asked to come again), bad, too_large, unauthorized,"
        " refused (connections over one address's share).",
        "outcome",
    ),
    _collector("assay_collect_spans_total", "counter", "Spans and log events that were kept, or rejected.", "outcome"),
    _collector(
        "assay_collect_calls_total",
        "counter",
        "Model calls in them: recorded (given to the client), no_content, no_answer, nested, judge, unreadable.",
        "outcome",
    ),
    _collector("assay_collect_waiting_spans", "gauge", "Spans that wait for the rest of their trace."),
    _collector("assay_collect_waiting_bytes", "gauge", "About how many bytes they take."),
)


# -- the reference


def metrics_markdown() -> str:
    """The reference of every metric, for docs/reference/metrics.md."""
    return "".join(
        [
            _REFERENCE_HEAD,
            "\n## The exporter\n\n",
            *_table("exporter"),
            _REFERENCE_REASONS,
            *_signals(),
            "\n## A worker\n\n",
            _REFERENCE_WORKER,
            *_table("worker"),
            "\n## The receiver of traces\n\n",
            _REFERENCE_COLLECTOR,
            *_table("collector"),
        ]
    )


def _table(process: _Process) -> Iterator[str]:
    yield "| metric | type | labels | what it is |\n|---|---|---|---|\n"
    for doc in DOCUMENTED:
        if doc.process == process:
            names = [f"`{name}`" for name in doc.label_names(["*"] if doc.cohort else [])]
            labels = ", ".join(names).replace("`*`", "*cohort*")
            yield f"| `{doc.name}` | {doc.type} | {labels} | {doc.help} |\n"


def _signals() -> Iterator[str]:
    yield "### Signals\n\n`signal` is one of these, see [signals](../howto/signals.md).\n\n"
    yield "| signal | of | what it is |\n|---|---|---|\n"
    for name, meaning in YES_NO.items():
        yield f"| `{name}` | share | {meaning} |\n"
    for name, known in WORDS.items():
        yield f"| `{name}_*` | share | one of: {', '.join(known)} |\n"
    for name, unit in NUMBERS.items():
        kind = "`assay_cost_per_interaction_usd`" if name == "cost_usd" else "mean"
        yield f"| `{name}` | {kind} | {unit} |\n"


_REFERENCE_HEAD = """\
# Metrics

Made from `assay.catalogue.DOCUMENTED` by `make docs`: change it there.

All ratios and scores are between 0 and 1. *cohort* stands for the labels that `ASSAY_COHORT_LABELS` declares: empty
where a record has no such value, `other` for what is over `ASSAY_MAX_SERIES` label sets. `window` is one of
`ASSAY_WINDOWS` (`5m`, `1h` and `24h` unless set). How the numbers are estimated, and why a window without scores has no
sample: [estimates](../explanation/estimates.md).

Info metrics have the value 1. The standard `process_*` metrics come on top.
"""

_REFERENCE_REASONS = """
### States and reasons of a corrected pass ratio

| state | reason | what it means |
|---|---|---|
| `ok` | | alert on it |
| `too_wide` | `wide_interval` | true, but vaguer than ±10 points: no level alert; it takes more records or labels |
| `stale` | `failed_audit` | fresh labels say that the correction holds no more: shown, but calibrate again |
| `no_calibration` | `no_calibration` | none of this rubric hash with this judge fingerprint |
| `no_calibration` | `few_labels` | people passed, or failed, fewer than 10 of the labelled records |
| `no_calibration` | `weak_judge` | it tells good from bad too weakly to correct by |
| `refused` | `small_window` | fewer than 30 effective records |
| `refused` | `mixed_judges` | two configurations of a judge of this name scored in the window |
| `refused` | `judge_changed` | the judge reads what its calibration cannot explain |

"""

_REFERENCE_COLLECTOR = """\
Served by `assay collect` beside `/v1/traces`; they begin at 0 with the process. What its clients took, sent and dropped
is with the exporter, as for every app.

"""

_REFERENCE_WORKER = """\
Served by each worker when `ASSAY_WORKER_METRICS_PORT` is set. These are of the process and begin at 0 with it: sum
their rates over workers. `assay_build_info` is there too.

"""
