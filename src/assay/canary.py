"""The canary: a fixed labelled set that is judged again and again, to tell a changed judge from a changed product.

The inputs never change, so whatever moves is the judge. It runs on a schedule, and at once when a detector alarms or
the judge was changed; the first run of an instrument is what later ones are compared with, record by record.
docs/explanation/changes.md says what that can tell.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from assay.calibration.drift import CanaryResult, canary_compare
from assay.errors import ConfigError, SettingsError
from assay.files import open_file
from assay.gate import Version
from assay.judged import judged_content
from assay.judging import Instrument, Tries, judge_items, plan_judging
from assay.labels import read_labels
from assay.records import Failure, Score, now
from assay.rubrics import Rubric
from assay.spelling import suggestion
from assay.store import CanaryRun, InstrumentName
from assay.verdicts import LEAST_ITEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from assay.judges import JudgeSettings
    from assay.labels import LabelSet
    from assay.records import Record
    from assay.store import ChangeEvent, ChangeKind, Store, Trigger, Verdict

_log = logging.getLogger(__name__)

#: A shift within it is none: of pass ratio, and of mean score.
MARGIN = 0.03
#: Of one run; and of that run and its repetition together, by which a shift is confirmed before it is believed.
_ALPHA, _ALPHA_CONFIRMED = 0.01, 0.002
#: A run that came to nothing is tried again after this, where somebody waits for it.
_AGAIN = timedelta(minutes=15)
_KEY_CHARACTERS = 16
#: Calls in flight: production's own must not wait for them.
_MOST_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPolicy:
    """When and how much to judge; the settings of the same names (`ASSAY_CANARY_...`) say what each is for."""

    #: label files, or `RUBRIC=FILE` for those that do not name their rubric
    files: tuple[str, ...] = ()
    repeats: int = 3
    hours: float = 24.0
    #: of all canaries in 24 hours; None: no bound
    budget_usd: float | None = None
    #: of one run
    max_seconds: float = 900.0
    tries: Tries = field(default_factory=Tries)


def canary_files(policy: CanaryPolicy) -> dict[str, Path]:
    """The label file of each rubric, by the rubric's name.

    Raises:
        SettingsError: a file does not say which rubric it is of, or two are of one.
    """
    found: dict[str, Path] = {}
    for entry in policy.files:
        name, equals, path = entry.partition("=")
        file = Path(path if equals else entry).expanduser()
        rubric = name if equals else _rubric_of(file)
        if rubric in found:
            raise SettingsError(f"ASSAY_CANARY: {found[rubric]} and {file} are both of {rubric}: name one")
        found[rubric] = file
    return found


def check_canary(files: Mapping[str, Path], rubrics: Iterable[Rubric]) -> None:
    """Whether each label file is of a rubric that there is: of another no canary ever runs, and nobody would notice.

    Raises:
        SettingsError: one is not.
    """
    known = sorted(rubric.name for rubric in rubrics)
    for name, file in files.items():
        if name not in known:
            mend = suggestion(name, known)
            raise SettingsError(f"ASSAY_CANARY: {file} is of {name!r}, and no rubric is called so: {mend}")


def _rubric_of(file: Path) -> str:
    try:
        with open_file(file) as lines:
            head = json.loads(lines.readline(100_000))
    except OSError as error:
        raise SettingsError(f"ASSAY_CANARY: {file}: {error.strerror}: check the path") from None
    except (ValueError, RecursionError):
        head = None
    rubric = head.get("rubric") if isinstance(head, dict) else None
    if not isinstance(rubric, str):
        raise SettingsError(f"ASSAY_CANARY: {file} does not name its rubric in its first line: write RUBRIC={file}")
    return rubric


# -- which instruments


def active_versions(store: Store, rubrics: Sequence[Rubric], settings: JudgeSettings) -> list[Version]:
    """The version of each rubric that production is scored with.

    Where a changed rubric waits at its gate, that is the one before it; one that cannot be asked any more is left out.

    Raises:
        StoreError: the store is away. SettingsError: the judge is not configured rightly.
    """
    active = {row.rubric: row for row in store.rubric_versions(retired=False) if row.state == "active"}
    found = []
    for rubric in rubrics:
        version, row = Version.of(rubric, settings), active.get(rubric.name)
        if row is not None and version.key != (row.rubric_hash, row.judge_fingerprint):
            try:
                version = Version.of(Rubric.from_dict(json.loads(row.body)), settings)
            except (ValueError, ConfigError):
                continue
            if version.key != (row.rubric_hash, row.judge_fingerprint):
                continue
        found.append(version)
    return found


def instrument_of(version: Version) -> InstrumentName:
    """The names that scores of this version are stored under."""
    rubric = version.rubric
    return InstrumentName(rubric.name, rubric.revision, rubric.hash, version.judge, version.judge_fingerprint)


# -- when


def due(
    *,
    latest: CanaryRun | None,
    has_baseline: bool,
    events: Sequence[ChangeEvent],
    present: datetime,
    hours: float,
) -> Trigger | None:
    """Why the canary of an instrument should run now; None when it need not. Pure.

    Args:
        latest: its latest run.
        has_baseline: whether there is something to compare with.
        events: its open drops, and the changes of its judge.
        present: aware.
        hours: between two runs on schedule.
    """
    waited = [event for event in events if event.kind == "drop"]
    if latest is None:
        return "change" if any(event.kind == "judge_changed" for event in events) else "baseline"
    # Where all was judged and it was too little, such as a short file, trying again would only cost.
    could_not = latest.repeats == 0 or latest.failures > 0
    came_to_nothing = could_not and not latest.baseline and latest.compared < LEAST_ITEMS
    if came_to_nothing and (waited or not has_baseline) and present - latest.finished_at >= _AGAIN:
        return "alarm" if waited else "baseline"
    fresh = [event for event in events if event.noted_at is not None and event.noted_at > latest.started_at]
    if any(event.kind == "drop" for event in fresh):
        return "alarm"
    if fresh:
        return "change"
    # Far from it on either side: a run in the future was made by a clock that was wrong.
    return "schedule" if abs(present - latest.finished_at) >= timedelta(hours=hours) else None


def run_due(
    store: Store,
    rubrics: Sequence[Rubric],
    settings: JudgeSettings,
    policy: CanaryPolicy,
    *,
    only: Callable[[Rubric], bool] = lambda _: True,
    clock: Callable[[], datetime] = now,
) -> list[CanaryRun]:
    """Run every canary that is due and that nobody else runs. Safe to run twice at once: a run is claimed first.

    Of rubrics that are not `only` none is run.

    Raises:
        StoreError: the store is away. SettingsError: a file of ASSAY_CANARY, or the judge, is not configured rightly.
    """
    files = canary_files(policy)
    if not files:
        return []
    latest = {run.instrument.key: run for run in store.canaries()}
    baselines = {run.instrument.key for run in store.canaries(baselines=True)}
    kinds: tuple[ChangeKind, ...] = ("judge_changed", "model_changed")
    events = [*store.change_events(open_only=True, limit=10_000), *store.change_events(kinds=kinds, limit=200)]
    done = []
    versions = active_versions(store, rubrics, settings)
    for version in versions:
        instrument = instrument_of(version)
        if version.rubric.name not in files or not only(version.rubric):
            continue
        trigger = due(
            latest=latest.get(instrument.key),
            has_baseline=instrument.key in baselines,
            events=[event for event in events if event.instrument.key == instrument.key],
            present=clock(),
            hours=policy.hours,
        )
        if trigger is None or not store.claim_canary(instrument, policy.max_seconds + 60):
            continue
        try:
            if _latest_id(store.canaries(), instrument) != _latest_id(latest.values(), instrument):
                # Somebody has run it since it was found to be due.
                store.free_canary(instrument)
                continue
            path = files[version.rubric.name]
            done.append(run_canary(store, version, versions, settings, policy, path, trigger=trigger, clock=clock))
        except BaseException:
            store.free_canary(instrument)
            raise
    return done


def _latest_id(runs: Iterable[CanaryRun], instrument: InstrumentName) -> str | None:
    return next((run.run_id for run in runs if run.instrument.key == instrument.key), None)


# -- one run


def run_canary(
    store: Store,
    version: Version,
    versions: Sequence[Version],
    settings: JudgeSettings,
    policy: CanaryPolicy,
    path: Path,
    *,
    trigger: Trigger,
    clock: Callable[[], datetime] = now,
) -> CanaryRun:
    """Judge the labelled set of one instrument, compare, and keep the run. What goes wrong is its reason.

    Args:
        store: keeps the runs, and the records of labels that have none.
        version: the instrument.
        versions: all that production asks: what shares a call there shares one here.
        settings: of the default judge.
        policy: how often and for how much.
        path: the label file.
        trigger: why it runs.
        clock: the present, aware.

    Raises:
        StoreError: the store is away; nothing is kept.
    """
    instrument, started = instrument_of(version), clock()
    baselines = {run.instrument.key: run for run in store.canaries(baselines=True)}
    before = baselines.get(instrument.key)
    former = before or _former(store, instrument, baselines)
    measured = _Measured()
    try:
        labels = _labelled(store, version.rubric, path)
        gentle = replace(settings, max_in_flight=min(settings.max_in_flight, _MOST_AT_ONCE))
        asked = Instrument(rubric=version.rubric, settings=gentle, others=tuple(v.rubric for v in versions))
        budget = None if policy.budget_usd is None else policy.budget_usd - store.canary_spent(started - _DAY)
        measured.labels = labels
        _measure(measured, asked, policy, budget, policy.repeats)
        found = _compare(former, measured, _ALPHA)
        if found.cause == "judge" and measured.stopped is None:
            left = None if budget is None else budget - measured.spent_usd
            _measure(measured, asked, policy, left, policy.repeats)
            found = _compare(former, measured, _ALPHA_CONFIRMED)
    except ConfigError as error:
        found = _Found(cause="unknown", reason=f"the canary cannot run: {str(error).splitlines()[0]}")
    run = CanaryRun(
        run_id=uuid.uuid4().hex,
        instrument=instrument,
        trigger=trigger,
        started_at=started,
        finished_at=clock(),
        cause=found.cause,
        reason=found.reason,
        # The set itself was changed: what is left of the old one tells nothing.
        baseline=measured.complete and (before is None or found.compared < LEAST_ITEMS),
        repeats=measured.repeats,
        scores=measured.scores,
        passes=measured.passes,
        items=measured.items,
        compared=found.compared,
        baseline_at=None if former is None else former.started_at,
        difference=found.difference,
        lower=found.lower,
        upper=found.upper,
        score_difference=found.score_difference,
        agreement=measured.agreement,
        calls=measured.calls,
        failures=measured.failures,
        spent_usd=measured.spent_usd,
    )
    store.save_canary(run)
    said = {"rubric": instrument.rubric, "judge": instrument.judge, "trigger": trigger, "cause": run.cause}
    _log.info("the canary has run", extra=said | {"reason": run.reason, "usd": run.spent_usd})
    return run


_DAY = timedelta(days=1)


@dataclass(slots=True)
class _Measured:
    """What judging the set has come to so far."""

    labels: LabelSet | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    passes: dict[str, list[float]] = field(default_factory=dict)
    repeats: int = 0
    items: int = 0
    calls: int = 0
    failures: int = 0
    spent_usd: float = 0.0
    stopped: str | None = None

    @property
    def complete(self) -> bool:
        """Whether later runs can be compared with it."""
        return self.stopped is None and len(self.scores) >= LEAST_ITEMS

    @property
    def agreement(self) -> float | None:
        """Share of the items on which most repeats say what the label says; None where there are none."""
        if self.labels is None:
            return None
        alike = []
        for item, label in zip(self.labels.items, self.labels.y_true, strict=True):
            passes = self.passes.get(_key(item.record)) if item.record is not None else None
            if passes and label in (0.0, 1.0):
                alike.append((sum(passes) / len(passes) >= 0.5) == (label == 1.0))
        return sum(alike) / len(alike) if alike else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the comparison says."""

    cause: Verdict
    reason: str
    compared: int = 0
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None
    score_difference: float | None = None


def _former(
    store: Store, instrument: InstrumentName, baselines: Mapping[tuple[str, str, str], CanaryRun]
) -> CanaryRun | None:
    """For the first run of a judge that took another's place under the same question: what that one read."""
    kinds: tuple[ChangeKind, ...] = ("judge_changed",)
    for event in store.change_events(kinds=kinds, rubric=instrument.rubric, limit=20):
        if event.instrument.key == instrument.key:
            before = event.details.get("before", {})
            if before.get("rubric_hash") != instrument.rubric_hash:
                return None
            return baselines.get((instrument.rubric, instrument.rubric_hash, str(before.get("judge_fingerprint"))))
    return None


def _labelled(store: Store, rubric: Rubric, path: Path) -> LabelSet:
    labels = read_labels(path, rubric, skip_unlabelled=True)
    if labels.without_record:
        labels = labels.with_records(store.records_called(labels.without_record))
    if not any(item.record is not None for item in labels.items):
        raise SettingsError(f"{path}: no row has a record: a canary judges texts, so it must hold them")
    return labels


def _key(record: Record) -> str:
    return judged_content(record)[:_KEY_CHARACTERS]


@dataclass(slots=True)
class _Spending:
    """What judging has cost so far: what is cut off has cost something all the same."""

    usd: float = 0.0

    def hear(self, _done: int, usd: float) -> None:
        self.usd = usd


def _measure(
    measured: _Measured, asked: Instrument, policy: CanaryPolicy, budget_usd: float | None, repeats: int
) -> None:
    """Judge the set so many times, and add what comes of it."""
    assert measured.labels is not None  # noqa: S101 - set by the caller
    records = {_key(item.record): item.record for item in measured.labels.items if item.record is not None}
    measured.items = len(records)
    spent = 0.0
    for _ in range(repeats):
        if budget_usd is not None and spent >= budget_usd:
            measured.stopped = "its budget of the day is spent: see ASSAY_CANARY_BUDGET_USD"
            return
        # A directory of its own each time: outcomes that are there already would be taken for new ones.
        with tempfile.TemporaryDirectory(prefix="assay-canary-") as directory:
            plan = plan_judging(list(records.items()), asked, Path(directory))
            left = None if budget_usd is None else budget_usd - spent
            spending = _Spending()
            judging = judge_items(plan, budget_usd=left, tries=policy.tries, on_progress=spending.hear)
            try:
                result = asyncio.run(asyncio.wait_for(judging, policy.max_seconds / (2 * policy.repeats)))
            except TimeoutError:
                measured.stopped = f"the judge took longer than {policy.max_seconds / (2 * policy.repeats):.0f} s"
                return
            finally:
                spent += spending.usd
                measured.spent_usd += spending.usd
        measured.calls += result.calls
        for key, outcome in result.outcomes.items():
            if isinstance(outcome, Score):
                measured.scores.setdefault(key, []).append(outcome.value)
                measured.passes.setdefault(key, []).append(float(outcome.passed))
            measured.failures += isinstance(outcome, Failure)
        if result.stopped is not None:
            measured.stopped = result.stopped
            return
        measured.repeats += 1


def _compare(before: CanaryRun | None, measured: _Measured, alpha: float) -> _Found:
    if before is None:
        if not measured.complete:
            return _Found(cause="unknown", reason=measured.stopped or _few(len(measured.scores), "scored"))
        return _Found(cause="none", reason="it has run for the first time: there is nothing to compare with yet")
    passes = canary_compare(before.passes, measured.passes, margin=MARGIN, alpha=alpha)
    scores = canary_compare(before.scores, measured.scores, margin=MARGIN, alpha=alpha)
    cause, reason = _cause(passes, scores, before, measured.stopped)
    return _Found(
        cause=cause,
        reason=reason,
        compared=passes.n,
        difference=passes.shift.value,
        lower=passes.shift.lower,
        upper=passes.shift.upper,
        score_difference=scores.shift.value,
    )


def _cause(
    passes: CanaryResult, scores: CanaryResult, before: CanaryRun, stopped: str | None
) -> tuple[Literal["judge", "product", "unknown"], str]:
    """Whose fault, and why. A judge may move its grades without moving a verdict, so both are looked at."""
    if passes.n < LEAST_ITEMS or passes.shift.value is None or scores.shift.value is None:
        return "unknown", stopped or _few(passes.n, "compared")
    since = f"{before.started_at:%Y-%m-%d}"
    moved = f"passes by {_points(passes)}, scores by {_points(scores)} since {since}, on {passes.n} records"
    if "judge" in (passes.cause, scores.cause):
        return "judge", f"the judge reads fixed records otherwise: {moved}"
    if passes.cause == scores.cause == "product":
        return "product", f"the judge reads fixed records as before: {moved}"
    return "unknown", f"the canary cannot tell: {moved}; more records, or repeats, would"


def _points(result: CanaryResult) -> str:
    shift = result.shift
    if shift.value is None or shift.lower is None or shift.upper is None:
        return "nothing known"
    return f"{100 * shift.value:+.1f} points ({100 * shift.lower:+.1f} to {100 * shift.upper:+.1f})"


def _few(n: int, what: str) -> str:
    return f"only {n} records of the canary could be {what}, and it takes {LEAST_ITEMS}"
