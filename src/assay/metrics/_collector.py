"""The exporter's series, read from the store and the queue at each scrape."""

from __future__ import annotations

import logging
import re
import threading
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import ProcessCollector

from assay.budgets import THINNED
from assay.catalogue import DOCUMENTED
from assay.corrections import Corrections, Place, body_of
from assay.errors import QueueError, SettingsError, StoreError
from assay.metrics._attacks import add_attacks
from assay.metrics._budgets import add_budgets
from assay.metrics._changes import add_changes
from assay.metrics._defects import add_defects
from assay.metrics._exposition import LabelTexts, label
from assay.metrics._families import Families
from assay.metrics._outbox import add_outbox
from assay.queue import client_counter
from assay.windows import Sums, parse_window, pass_ratio, score_mean, window_bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import date

    from assay.budgets import Ledger
    from assay.corrections import Correction, Instrument
    from assay.metrics._exposition import Family
    from assay.metrics._signals import Scores
    from assay.queue import Queue
    from assay.rubrics import Rubric
    from assay.store import Store, Total

_log = logging.getLogger("assay.metrics")
_T = TypeVar("_T")

_STATES = ("ok", "too_wide", "stale", "no_calibration", "refused")

#: Names that a cohort label cannot have: those it would stand beside, and what Prometheus adds itself.
_RESERVED = {label for doc in DOCUMENTED if doc.cohort for label in doc.labels} | {"le", "quantile", "job", "instance"}

#: How many app names of clients are shown before the rest is summed up as `other`: they come from outside.
_MAX_CLIENT_APPS = 200

#: app, rubric, rubric_version, judge and the cohort labels
_Key = tuple[str, ...]

_NOTHING = Sums()

#: Sums by what measured: rubric hash and judge fingerprint.
_Parts = dict["Instrument", Sums]


class ScoreCollector:
    """The time series of the exporter, read from the store and the queue at each `collect`. Thread-safe.

    A part that is away is left out and said to be away by `assay_up`. What is remembered from an earlier read is used
    only where the store says that it has not changed since, or where whole hours are compared (the input's shift).

    Args:
        windows: rolling windows such as `5m`; each is a value of the label `window`.
        cohort_labels: the labels that the store was opened with.
        clock: the present, in epoch seconds.
        rubrics: published as `assay_rubric_info`, with their objectives.
        reference_week: first day of the week that the input is compared with; by default the last week before today.
        ledger: of the budgets, where there are any.

    Raises:
        SettingsError: a window or a cohort label that cannot be one.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        *,
        windows: Sequence[str] = ("5m", "1h", "24h"),
        cohort_labels: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        rubrics: Sequence[Rubric] = (),
        reference_week: date | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._queue = queue
        self._windows = {text.strip(): parse_window(text) for text in windows}
        self._cohort_labels = check_cohort_labels(cohort_labels)
        self._clock = clock
        self._rubrics = tuple(rubrics)
        self._lock = threading.Lock()
        self._errors = {"database": 0, "redis": 0}
        self._away: set[str] = set()
        self._client_apps: set[str] = set()
        self._process = ProcessCollector(registry=None)
        self._corrections = Corrections()
        # They need numpy, which a worker, whose metrics are in this package too, does without.
        from assay.metrics._signals import InputShifts, WindowSums

        self._texts = LabelTexts()
        self._sums = WindowSums(self._cohort_labels)
        self._input_shifts = InputShifts(reference_week)

    def collect(self) -> Iterable[Family]:
        """All families as of now; those of the store only if all of it could be read."""
        now = self._clock()
        self._texts.turn()
        everything = Families(self._cohort_labels, self._texts)
        for component, read in (("database", self._read_store), ("redis", self._read_queue)):
            started = time.perf_counter()
            part = self._attempt(component, partial(read, now))
            everything.add("assay_exporter_read_seconds", (component,), time.perf_counter() - started)
            everything.add("assay_up", (component,), float(part is not None))
            everything.add("assay_exporter_errors_total", (component,), self._errors[component])
            if part is not None:
                everything.update(part)
        self._add_constants(everything)
        return [*everything.families(), *self._process.collect()]

    def health(self) -> dict[str, bool]:
        """Whether the database answers and is migrated, and whether Redis answers."""
        return {
            "database": self._attempt("database", partial(_succeed, self._store.check)) is not None,
            "redis": self._attempt("redis", partial(_succeed, self._queue.ping)) is not None,
        }

    def _attempt(self, component: str, read: Callable[[], _T]) -> _T | None:
        """The reading, or None and one more error; the log says only when a component goes or comes back."""
        try:
            value = read()
        except (StoreError, QueueError) as error:
            with self._lock:
                self._errors[component] += 1
                if component not in self._away:
                    _log.warning("%s is away: %s", component, error)
                self._away.add(component)
            return None
        with self._lock:
            if component in self._away:
                _log.info("%s is back", component)
            self._away.discard(component)
        return value

    # -- the store

    def _key(self, row: Total) -> _Key:
        cohort = row.cohort
        values = (row.app, row.rubric, row.rubric_version, row.judge)
        return tuple(label(value) for value in (*values, *(cohort.get(name, "") for name in self._cohort_labels)))

    def _read_store(self, now: float) -> Families:
        families = Families(self._cohort_labels)
        corrections = self._corrections.following(self._store)
        scores = self._sums.add(families, self._store, self._windows, now)
        instruments = self._add_windows(families, scores, now, corrections)
        _add_calibrations(families, corrections, instruments, now)
        placed_keys = {(placed.rubric_hash, placed.judge_fingerprint) for placed in corrections.versions}
        add_attacks(families, self._store, instruments | (placed_keys - corrections.behind), now)
        own = {(rubric.name, rubric.revision) for rubric in self._rubrics}
        for placed in corrections.versions:
            if (placed.rubric, placed.rubric_version) not in own:
                _add_rubric(families, placed.rubric, placed.rubric_version, body_of(placed))
        self._input_shifts.add(families, self._store, now)
        self._add_totals(families)
        add_defects(families, self._store, self._cohort_labels)
        self._add_counts(families)
        add_changes(families, self._store, self._cohort_labels, corrections.versions, now)
        add_outbox(families, self._store, now)
        self._corrections = corrections
        return families

    def _add_windows(
        self, families: Families, scores: Mapping[str, Scores], now: float, corrections: Corrections
    ) -> set[Instrument]:
        """The gauges of every window. Returns what measured in any."""
        bounds = {text: window_bounds(now, seconds) for text, seconds in self._windows.items()}
        # Whatever is in one window is shown in all: that nothing is in it is news.
        keys = dict.fromkeys(key for found in scores.values() for key in found)
        for text, (start, end) in bounds.items():
            by_app: dict[_Key, _Parts] = {}
            for key in keys:
                found = scores[text].get(key, {})
                parts = {instrument: sums for instrument, sums in found.items() if instrument not in corrections.behind}
                place = Place(app=key[0], is_whole_app=not self._cohort_labels, start=start, end=end)
                _add_window(families, "assay_", (*key, text), parts, corrections.correct(parts, place))
                whole = by_app.setdefault(key[:4], {})
                for instrument, sums in parts.items():
                    _add_part(whole, instrument, sums)
            for key, parts in by_app.items():
                place = Place(app=key[0], is_whole_app=True, start=start, end=end)
                _add_window(families, "assay_app_", (*key, text), parts, corrections.correct(parts, place))
        measured = {instrument for found in scores.values() for parts in found.values() for instrument in parts}
        return measured - corrections.behind

    def _add_totals(self, families: Families) -> None:
        for total in self._store.totals():
            key = self._key(total)
            families.scores(key, total)
            for outcome in ("scored", "failed", "not_applicable"):
                families.add("assay_evaluations_total", (*key, outcome), getattr(total, outcome))
            families.add("assay_recovered_total", key, total.recovered)
            for kind, n in total.failures.items():
                families.add("assay_failures_total", (*key, label(kind)), n)
            for reason, n in total.reasons.items():
                families.add("assay_not_applicable_total", (*key, label(reason)), n)
                if reason == THINNED:
                    families.add("assay_budget_thinned_total", key[:2], n)
            used = total.usage
            for direction, tokens in (("prompt", used.prompt_tokens), ("completion", used.completion_tokens)):
                if tokens is not None:
                    families.add("assay_evaluation_tokens_total", (*key, direction), tokens)
            if used.cost_usd is not None:
                families.add("assay_evaluation_cost_usd_total", key, used.cost_usd)
            if total.last_scored_at is not None:
                families.most("assay_last_score_timestamp_seconds", key, total.last_scored_at)

    def _add_counts(self, families: Families) -> None:
        counts = self._store.counts()
        for app, received in counts.received.items():
            families.add("assay_records_total", (label(app), "received"), received)
        families.add("assay_records_total", ("", "duplicate"), counts.duplicates)
        for reason, waiting in counts.dead_kept.items():
            families.add("assay_dead_letters_waiting", (label(reason),), waiting)
        for reason, n in counts.dead_total.items():
            families.add("assay_dead_letters_total", (label(reason),), n)
        families.add("assay_series", (), counts.series)
        families.add("assay_series_overflow_total", (), counts.series_overflow)

    # -- the queue

    def _read_queue(self, now: float) -> Families:
        families = Families(self._cohort_labels)
        depth = self._queue.depth()
        families.add("assay_queue_records", (), depth.records)
        families.add("assay_queue_batches", (), depth.batches)
        families.add("assay_queue_ragas_records", (), depth.ragas_records)
        if self._ledger is not None:
            add_budgets(families, self._ledger, self._store.shows)
        oldest = depth.oldest_enqueued_at
        # The clients' clocks may be ahead of ours.
        families.add("assay_oldest_pending_seconds", (), 0.0 if oldest is None else max(0.0, now - oldest))
        for text, seconds in self._windows.items():
            since = window_bounds(now, seconds)[0]
            families.add("assay_window_pending_records", (text,), self._queue.pending_records(since))
        for name, count in self._queue.counters().items():
            if name == "accepted":
                families.add("assay_queue_accepted_total", (), count)
            elif (client := client_counter(name)) is not None and self._store.shows(client[0]):
                app, outcome = self._client_app(client[0]), client[1]
                if outcome.startswith("dropped:"):
                    reason = label(outcome.removeprefix("dropped:"))
                    families.add("assay_client_dropped_total", (app, reason), count)
                else:
                    families.add("assay_client_records_total", (app, label(outcome)), count)
        return families

    def _client_app(self, app: str) -> str:
        """`app`, while there are not too many: names that were seen first stay, so that no counter goes back."""
        app = label(app)
        with self._lock:
            if app not in self._client_apps and len(self._client_apps) >= _MAX_CLIENT_APPS:
                return "other"
            self._client_apps.add(app)
        return app

    def _add_constants(self, families: Families) -> None:
        for rubric in self._rubrics:
            _add_rubric(families, rubric.name, rubric.revision, rubric.to_dict())
        families.add("assay_build_info", (version("assay"),), 1)


def check_cohort_labels(names: Sequence[str]) -> tuple[str, ...]:
    """`names`, if each can be a metric label.

    Raises:
        SettingsError: one is not a label name of Prometheus, is taken by assay itself, or comes twice.
    """
    for index, name in enumerate(names):
        if not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name):
            raise SettingsError(f"cohort label {name!r}: a metric label has letters, digits and _ only")
        if name in _RESERVED:
            raise SettingsError(f"cohort label {name!r}: this label has a meaning of its own, choose another name")
        if name in names[:index]:
            raise SettingsError(f"cohort label {name!r} is declared twice")
    return tuple(names)


def _succeed(check: Callable[[], None]) -> bool:
    check()
    return True


def _add_part(parts: _Parts, instrument: Instrument, sums: Sums) -> None:
    known = parts.get(instrument)
    parts[instrument] = sums if known is None else known + sums


def _add_window(
    families: Families, prefix: str, labels: tuple[str, ...], parts: _Parts, correction: Correction | None
) -> None:
    sums = sum(parts.values(), _NOTHING) if len(parts) != 1 else next(iter(parts.values()))
    families.add(f"{prefix}window_records", labels, sums.n)
    families.add(f"{prefix}window_interactions", labels, sums.sum_w)
    passing, mean = pass_ratio(sums), score_mean(sums)
    if passing is None or mean is None:
        return
    families.add(f"{prefix}window_effective_records", labels, passing.n_effective)
    families.add(f"{prefix}pass_ratio_unweighted", labels, sums.passes / sums.n)
    for name, estimate in (("pass_ratio", passing), ("score_mean", mean)):
        families.add(f"{prefix}{name}", labels, estimate.value)
        families.add(f"{prefix}{name}_ci_lower", labels, estimate.lower)
        families.add(f"{prefix}{name}_ci_upper", labels, estimate.upper)
    if correction is not None:
        _add_correction(families, prefix, labels, correction)


def _add_correction(families: Families, prefix: str, labels: tuple[str, ...], correction: Correction) -> None:
    for state in _STATES:
        families.add(f"{prefix}calibration_state", (*labels, state), float(state == correction.state))
    families.add(f"{prefix}correction_info", (*labels, correction.method, correction.reason), 1)
    estimate, name = correction.estimate, f"{prefix}pass_ratio_corrected"
    if estimate is None or correction.window_lower is None or correction.window_upper is None:
        return
    families.add(name, labels, estimate.value)
    families.add(f"{name}_ci_lower", labels, estimate.lower)
    families.add(f"{name}_ci_upper", labels, estimate.upper)
    families.add(f"{name}_window_ci_lower", labels, correction.window_lower)
    families.add(f"{name}_window_ci_upper", labels, correction.window_upper)


def _add_calibrations(
    families: Families, corrections: Corrections, instruments: Iterable[Instrument], now: float
) -> None:
    """What is known of the judges, and of the rubrics that the workers have."""
    for known in corrections.shown(instruments):
        made = known.calibration
        key = tuple(map(label, (made.rubric, made.rubric_version, made.judge)))
        bound_to = (made.calibration_id, made.rubric_hash, made.judge_fingerprint)
        described = (made.selection, label(made.annotator_kind), str(made.synthetic).lower())
        families.most("assay_calibration_info", (*key, *bound_to, *described), 1)
        for level, is_it in known.levels().items():
            families.most("assay_calibration_level", (*key, level), float(is_it))
        labelled = made.labelled_to or made.created_at
        # The clock that the labels were dated by may be ahead of ours.
        families.most("assay_calibration_age_seconds", key, max(0.0, now - labelled.timestamp()))
        counts = made.rates.counts
        for name, n in (("pass", counts.passes), ("fail", counts.fails)):
            families.most("assay_calibration_labels", (*key, name), n)
        for name, statistic in (
            ("bias_ratio", made.bias),
            ("kappa", made.kappa),
            ("fail_recall", made.fail_recall),
            ("fail_precision", made.fail_precision),
            ("youden", made.youden),
        ):
            ends = (("", statistic.value), ("_ci_lower", statistic.lower), ("_ci_upper", statistic.upper))
            for end, value in ends:
                if value is not None:
                    families.most(f"assay_judge_{name}{end}", key, value)
    for placed in corrections.versions:
        if (placed.rubric_hash, placed.judge_fingerprint) in corrections.behind:
            # A rule that leaves out what waits would leave out the active version of these labels.
            continue
        for state in ("active", "waiting"):
            key = tuple(map(label, (placed.rubric, placed.rubric_version, placed.judge)))
            families.most("assay_rubric_state", (*key, state), float(state == placed.state))


def _add_rubric(families: Families, name: str, revision: str, fields: Mapping[str, Any]) -> None:
    """Title, threshold and objective of a version, by the fields of its file."""
    key = (label(name), label(revision))
    families.most("assay_rubric_info", (*key, label(str(fields.get("title") or ""))), 1)
    for metric, name in (("assay_pass_threshold_ratio", "pass_threshold"), ("assay_objective_ratio", "objective")):
        value = fields.get(name)
        if isinstance(value, int | float):
            families.most(metric, key, value)
