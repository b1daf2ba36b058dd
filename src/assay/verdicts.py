"""Whether the product or its judge has changed: a verdict on each instrument, from drops, canaries and new judges."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from assay.records import now
from assay.store import ChangeEvent, DriftVerdict, InstrumentName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from assay.store import CanaryRun, ChangeKind, Store, Verdict

_log = logging.getLogger(__name__)

#: For so long the verdict says that the judge was changed, unless somebody acknowledges it or a canary finds no change.
CHANGED_FOR = timedelta(hours=24)
#: A canary run that compared fewer items says neither that the judge has changed nor that it has not.
LEAST_ITEMS = 30


def judge_verdict(
    *,
    drops: Sequence[ChangeEvent],
    canary: CanaryRun | None,
    changed: ChangeEvent | None,
    retired: bool = False,
) -> tuple[Verdict, str]:
    """Whose fault a change is, and why (one sentence without its full stop). Pure.

    Args:
        drops: open alarms of the instrument.
        canary: its latest canary run.
        changed: the event of its having taken another judge's place, while that counts; see `clears`.
        retired: another version has taken its place.
    """
    if retired:
        return "none", "another version took its place"
    if changed is not None:
        return "judge", changed.message
    if canary is not None and canary.cause == "judge":
        return "judge", canary.reason
    if not drops:
        return "none", "nothing has changed"
    noted = [drop.noted_at for drop in drops if drop.noted_at is not None]
    if canary is None:
        return "unknown", "no canary has run: ASSAY_CANARY names label files to tell the judge from the product by"
    if noted and canary.started_at < min(noted):
        return "unknown", "the canary has not run since"
    if canary.baseline_at is not None and canary.baseline_at > min(map(_onset, drops)):
        return "unknown", "the canary was first run after the change: it cannot tell what the judge read before"
    # A judge that may have moved by a point or two has not made the product drop by ten.
    gap = max(float(drop.details.get("target", 0.0)) - float(drop.details.get("pass_ratio", 0.0)) for drop in drops)
    explained = canary.lower is None or canary.lower <= -gap / 2
    if canary.cause == "product" or not explained:
        return "product", canary.reason if explained else f"{_at_most(canary.lower)}, and the drop is {100 * gap:.0f}"
    return "unknown", canary.reason


def clears(run: CanaryRun, changed: ChangeEvent) -> bool:
    """Whether a run found that a judge reads as was read before it took another's place, or somebody accepted it.

    Once is enough, whatever later runs are compared with: what the judge itself read first.
    """
    after, compared = changed.happened_at, run.baseline_at
    # A run that was compared has no cause only once it was accepted.
    found = run.cause in ("product", "none")
    return found and run.started_at > after and compared is not None and compared < after


def _onset(drop: ChangeEvent) -> datetime:
    """Since when the stream has been worse: long before the alarm, if it fell by little."""
    since = drop.details.get("since")
    return drop.happened_at if since is None else datetime.fromisoformat(since)


def _at_most(lower: float | None) -> str:
    return f"the judge reads fixed records at most {max(0.0, -100 * (lower or 0.0)):.1f} points lower than before"


def settle_verdicts(store: Store, *, clock: Callable[[], datetime] = now) -> int:
    """Say anew, of every instrument, whose fault a change is; returns how many verdicts are others than before.

    Raises:
        StoreError: the store is away.
    """
    versions = store.rubric_versions()
    retired = {InstrumentName.of(version).key for version in versions if version.state == "retired"}
    drops = store.change_events(open_only=True, limit=10_000)
    latest = {run.instrument.key: run for run in store.canaries()}
    for run in store.canaries(told=True):
        # A judge that was found changed has not changed back because a later run could not ask it.
        newest = latest.get(run.instrument.key)
        if run.cause == "judge" and newest is not None and newest.cause == "unknown" and newest.compared < LEAST_ITEMS:
            latest[run.instrument.key] = run
    before = {verdict.instrument.key: verdict for verdict in store.drift_verdicts()}
    since = clock() - CHANGED_FOR
    judges: tuple[ChangeKind, ...] = ("judge_changed",)
    changed = {
        event.instrument.key: event
        for event in reversed(store.change_events(kinds=judges, limit=200))
        if event.happened_at > since and event.acknowledged_at is None
    }
    for run in store.canary_runs(since) if changed else ():
        taken = changed.get(run.instrument.key)
        if taken is not None and clears(run, taken):
            del changed[run.instrument.key]
    instruments = {event.instrument.key: event.instrument for event in (*drops, *changed.values())}
    instruments |= {key: run.instrument for key, run in latest.items()}
    instruments |= {key: verdict.instrument for key, verdict in before.items()}
    n = 0
    for key, instrument in instruments.items():
        own = [drop for drop in drops if drop.instrument.key == key]
        found, reason = judge_verdict(
            drops=own,
            canary=latest.get(key),
            changed=changed.get(key),
            retired=key in retired,
        )
        known = before.get(key)
        was, why = ("none", reason) if known is None else (known.verdict, known.reason)
        # A drop that came after the verdict, and a reason that is another now, are told as well.
        if (found, reason) == (was, why) and all(drop.verdict == found for drop in own):
            continue
        moment = clock()
        event = ChangeEvent(
            event_id=ChangeEvent.id_of("verdict", *key, found, moment.isoformat()),
            kind="verdict",
            instrument=instrument,
            happened_at=moment,
            message=reason,
            details={"before": was},
            verdict=found,
        )
        if store.save_verdict(DriftVerdict(instrument=instrument, verdict=found, reason=reason), event):
            n += 1
            said = {"rubric": instrument.rubric, "judge": instrument.judge, "verdict": found, "reason": reason}
            _log.log(logging.INFO if found == "none" else logging.WARNING, "drift verdict", extra=said)
    return n
