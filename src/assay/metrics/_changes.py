"""What the watch over pass ratios and the canary say, as series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.corrections import behind
from assay.metrics._exposition import label

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from assay.corrections import Instrument
    from assay.metrics._families import Families
    from assay.store import ChangeStream, InstrumentName, RubricVersion, Store

_VERDICTS = ("none", "product", "judge", "unknown")


def add_changes(
    families: Families, store: Store, cohort_labels: Sequence[str], versions: Iterable[RubricVersion], now: float
) -> None:
    """The detectors, the verdicts and the canaries; `versions` are those that are active or wait, `now` epoch seconds.

    A detector whose judge was replaced shows its counters only, and so does one whose judge waits under the labels of
    an active one. Verdicts and canaries are shown of what is in use.

    Raises:
        StoreError: the store is away.
    """
    streams, versions = store.change_streams(), list(versions)
    hidden = behind(versions)
    _add_streams(families, streams, cohort_labels, hidden)
    position = store.change_position()
    if position is not None:
        families.add("assay_change_position_timestamp_seconds", (), position)
    used = {stream.name.instrument.key: stream.name.instrument for stream in streams if stream.phase != "ended"}
    in_use = {(v.rubric, v.rubric_hash, v.judge_fingerprint) for v in versions} | used.keys()
    verdicts = {known.instrument.key: known for known in store.drift_verdicts() if known.instrument.key in in_use}
    shown = used | {key: verdict.instrument for key, verdict in verdicts.items()}
    for key, instrument in shown.items():
        if key[1:] in hidden:
            continue
        found = verdicts[key].verdict if key in verdicts else "none"
        for verdict in _VERDICTS:
            families.most("assay_drift_verdict", (*_labels(instrument), verdict), float(verdict == found))
    for run in store.canaries():
        if run.instrument.key not in in_use or run.instrument.key[1:] in hidden:
            continue
        labels = _labels(run.instrument)
        families.most("assay_canary_age_seconds", labels, max(0.0, now - run.finished_at.timestamp()))
        families.most("assay_canary_records", labels, len(run.scores))
        for end, value in (("", run.difference), ("_ci_lower", run.lower), ("_ci_upper", run.upper)):
            if value is not None:
                families.most(f"assay_canary_difference{end}", labels, value)


def _add_streams(
    families: Families, streams: Sequence[ChangeStream], cohort_labels: Sequence[str], hidden: Container[Instrument]
) -> None:
    latest: dict[tuple[str, ...], ChangeStream] = {}
    for stream in streams:
        cohort, (rubric, version, _, judge, _) = stream.name.cohort, stream.name.instrument
        values = (stream.name.app, rubric, version, judge, *(cohort.get(name, "") for name in cohort_labels))
        key = tuple(map(label, values))
        for name, n in (("", stream.records), ("late_", stream.late)):
            families.add(f"assay_change_{name}records_total", key, n)
        if stream.phase != "ended" and stream.name.instrument.key[1:] not in hidden:
            # Two judges of one name share the labels: the one that scored last is meant.
            latest[key] = stream
    for key, stream in latest.items():
        families.add("assay_change_alarm", key, float(stream.phase == "alarmed"))
        for name, value in (
            ("evidence", stream.evidence),
            ("threshold", stream.threshold),
            ("reference_ratio", stream.reference),
        ):
            if value is not None:
                families.add(f"assay_change_{name}", key, value)


def _labels(instrument: InstrumentName) -> tuple[str, ...]:
    return tuple(map(label, (instrument.rubric, instrument.rubric_version, instrument.judge)))
