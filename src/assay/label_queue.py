"""The way of a production record to a label and back: picked by chance, handed to people, merged into a label file.

The chance of each pick is kept with it, so that every estimate can weigh by it. `audit_calibrations` then tells by
fresh labels whether a calibration still holds. docs/howto/label-records.md shows the commands.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from assay.errors import CalibrationError, ConfigError
from assay.files import create_private
from assay.labels import LABEL_FILE, LabelSet
from assay.records import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from assay.calibration import Audit, Calibration, Method
    from assay.labels import Labelled, Selection
    from assay.records import Record
    from assay.rubrics import Rubric
    from assay.store import LabelCandidate, LabelRequest, Store, StoredCalibration

#: Columns of what people get, in a table or a labelling tool; `read_labels` takes the table back with `SHEET_COLUMNS`.
_SHEET = ("record_id", "question", "context", "answer", "label", "annotator", "note")
#: A map of columns that leaves the texts out: the records themselves are in the store.
SHEET_COLUMNS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, kw_only=True)
class Picked:
    """What one pick came to."""

    #: interactions in [start, end) were looked at
    start: datetime
    end: datetime
    #: an earlier pick ended later than the asked start, and this one goes on from there
    goes_on: bool
    #: records that could be picked
    candidates: int
    requests: tuple[LabelRequest, ...]
    #: picks that the judge fails
    judge_fails: int


def pick_labels(
    store: Store, rubric: str, *, budget: float, start: datetime, end: datetime, twice: float = 0.1
) -> Picked:
    """Pick scored records for people to label, and note in the store with what chance.

    Where the judge is unsure there are more picks, nowhere none. Interactions from before the end of an earlier pick of
    the same rubric are left out: they had their chance, and a second one would make it unknown. Loads numpy.

    Args:
        store: where scores and requests are.
        rubric: its name.
        budget: expected number of picks, above 0.
        start, end: interactions to look at, aware.
        twice: share of the picks that two people should label.

    Raises:
        StoreError: the database is away.
    """
    from assay.calibration import pick_for_humans
    from assay.store import LabelRequest

    last = max((request.picked_at for request in store.label_requests(rubric) if request.picked_at), default=start)
    begin = max(start, last)
    found = store.label_candidates(rubric, begin, end, payloads=False) if begin < end else []
    candidates = [candidate for candidate in found if candidate.picked_with is None]
    judged_with = {candidate.record_id: candidate.judged_with for candidate in candidates}
    predicted = _predicted(candidates, store.calibrations(rubric) if candidates else [])
    picks = pick_for_humans(
        [candidate.record_id for candidate in candidates], predicted, budget, twice=twice, salt=rubric
    )
    requests = tuple(
        LabelRequest(
            record_id=pick.record_id,
            rubric=rubric,
            # What was left out for a budget could not be picked: the label stands for as much as its score does.
            probability=judged_with[pick.record_id] * pick.probability,
            twice=pick.twice,
        )
        for pick in picks
    )
    store.request_labels(requests)
    failed = {candidate.record_id for candidate in candidates if not candidate.passed}
    return Picked(
        start=begin,
        end=end,
        goes_on=last > start,
        candidates=len(candidates),
        requests=requests,
        judge_fails=sum(request.record_id in failed for request in requests),
    )


def _predicted(candidates: Sequence[LabelCandidate], calibrations: Sequence[StoredCalibration]) -> list[float]:
    """The share that people pass at each candidate's score, by the judge's calibration; else the score itself."""
    maps = {}
    for stored in calibrations:
        try:
            found = _read(stored).score_map
        except CalibrationError:
            continue
        if found is not None:
            maps[stored.rubric_hash, stored.judge_fingerprint] = found
    predicted = [candidate.value for candidate in candidates]
    for at, candidate in enumerate(candidates):
        score_map = maps.get((candidate.rubric_hash, candidate.judge_fingerprint))
        if score_map is not None:
            predicted[at] = float(score_map.predict([candidate.value])[0])
    return predicted


def _read(stored: StoredCalibration) -> Calibration:
    from assay.calibration.artefact import Calibration

    return Calibration.from_json(stored.body, path=f"calibration {stored.calibration_id[:12]}")


# Out to people.

#: What an export is written as: a label file to fill in, a table, or tasks of Label Studio.
ExportForm = Literal["jsonl", "csv", "label-studio"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What one export came to."""

    records: int
    #: picked, but their texts are not stored any more
    gone: int


def export_labels(
    store: Store, rubric: Rubric, path: Path, form: ExportForm, *, again: bool = False, second: bool = False
) -> Exported:
    """Write the picked records that nobody has labelled yet, for people to label, and note that they are out.

    Where there are none, no file is written.

    What the judge says of them is left out: it would sway whoever labels.

    Args:
        store: where records and requests are.
        rubric: that people are to label by.
        path: file to write.
        form: how to write it.
        again: those too that were exported before.
        second: those alone that two people should label, for the second of them.

    Raises:
        StoreError: the database is away. ConfigError: the file exists, or cannot be written.
    """
    requests = [
        request
        for request in store.label_requests(rubric.name)
        if (request.twice if second else request.labelled_at is None and (again or request.exported_at is None))
    ]
    records = {record.record_id: record for record in store.records(request.record_id for request in requests)}
    rows = [(records[request.record_id], request) for request in requests if request.record_id in records]
    if not rows:
        return Exported(records=0, gone=len(requests))
    if path.exists():
        # It may be a sheet that somebody has filled in.
        raise ConfigError(f"{path}: exists: name another file, or import it first and delete it")
    try:
        with create_private(path) as file:
            file.writelines(_written(rows, rubric, form))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not second:
        store.mark_labels(rubric.name, (record.record_id for record, _ in rows), "exported")
    return Exported(records=len(rows), gone=len(requests) - len(rows))


def _written(rows: Iterable[tuple[Record, LabelRequest]], rubric: Rubric, form: ExportForm) -> Iterator[str]:
    if form == "label-studio":
        tasks = [{"data": _sheet(record) | {"rubric": rubric.name}} for record, _ in rows]
        yield json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"
    elif form == "csv":
        text = io.StringIO()
        table = csv.DictWriter(text, _SHEET, restval="")
        table.writeheader()
        table.writerows({name: _harmless(name, value) for name, value in _sheet(record).items()} for record, _ in rows)
        yield text.getvalue()
    else:
        head = {
            "label_file": LABEL_FILE,
            "rubric": rubric.name,
            "rubric_version": rubric.version,
            "annotators": "human",
            "selection": "probability",
        }
        yield json.dumps(head) + "\n"
        for record, request in rows:
            row: dict[str, Any] = {"record": json.loads(record.to_json()), "labels": {}}
            row |= {"probability": _probability(record, request), "note": ""}
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _sheet(record: Record) -> dict[str, str]:
    return {
        "record_id": record.record_id,
        "question": record.input_text,
        "context": "\n\n".join(context.text for context in record.contexts),
        "answer": record.output,
    }


def _harmless(name: str, value: str) -> str:
    """A cell that no spreadsheet takes for a formula; ids stay as they are, they are read back."""
    return f" {value}" if name != "record_id" and value.startswith(("=", "+", "-", "@", "\t")) else value


def _probability(record: Record, request: LabelRequest) -> float:
    return record.sampling.probability * request.probability


# Back from people.


@dataclass(frozen=True, kw_only=True)
class Received:
    """What one import came to."""

    labels: LabelSet
    #: records with labels that were picked here, and those that were not
    picked: int
    others: int


def receive_labels(
    store: Store,
    labels: LabelSet,
    *,
    records: Iterable[Record] = (),
    others: Literal["refuse", "drop", "curated"] = "refuse",
    at: datetime | None = None,
) -> Received:
    """Labels that came back, with their records and with the chance that each was picked with.

    Args:
        store: where records and requests are.
        labels: as they were read.
        records: where labels name records that the store does not have.
        others: what to do with labels of records that were not picked here, when others were: `drop` them, or take all
            as picked by hand (`curated`), for the chance of some is not known.
        at: when labels without a time were given; now by default.

    Raises:
        LabelErrors: labels of unknown records. ConfigError: picked and other records are mixed, and `refuse` is said.
        StoreError: the database is away.
    """
    lacking = labels.without_record
    labels = labels.with_records([*store.records_called(lacking), *records]) if lacking else labels
    requests = {request.record_id: request for request in store.label_requests(labels.rubric)}
    picked = sum(item.item_id in requests for item in labels.items)
    unpicked = len(labels.items) - picked
    if picked and unpicked and others == "refuse":
        raise ConfigError(
            f"{labels.path}: {unpicked} of {len(labels.items)} labels are of records that were not picked here, so "
            "with what chance they came in is not known: leave them out (--others drop), or take all as picked by hand "
            "(--others curated)"
        )
    moment = at or now()
    items = []
    for item in labels.items:
        request = requests.get(item.item_id)
        if request is None and picked and others == "drop":
            continue
        probability = item.probability
        if others == "curated":
            probability = 1.0
        elif request is not None:
            probability = _chance(item, request)
        items.append(replace(item, probability=probability, labelled_at=item.labelled_at or moment))
    selection: Selection = labels.selection
    if others == "curated" or picked:
        selection = "curated" if others == "curated" else "probability"
    received = replace(labels, items=tuple(items), selection=selection)
    return Received(labels=received, picked=picked, others=unpicked)


def _chance(item: Labelled, request: LabelRequest) -> float:
    return request.probability if item.record is None else _probability(item.record, request)


def mark_received(store: Store, labels: LabelSet) -> int:
    """Note in the store that these came back; returns how many requests had been waiting for it."""
    return store.mark_labels(labels.rubric, (item.item_id for item in labels.items), "labelled")


def merge_labels(before: LabelSet, after: LabelSet) -> LabelSet:
    """Both together. A new label of an annotator takes the place of the old one; the head is that of `before`.

    Raises:
        ConfigError: they are not of one kind.
    """
    for name in ("rubric", "selection", "annotator_kind", "synthetic", "pass_threshold"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            raise ConfigError(
                f"{before.path} has {name} {old}, the new labels {new}: write them to a file of their own"
            )
    items = {item.item_id: item for item in before.items}
    for item in after.items:
        old = items.get(item.item_id)
        items[item.item_id] = item if old is None else _merged(old, item)
    return replace(before, items=tuple(items.values()))


def _merged(old: Labelled, new: Labelled) -> Labelled:
    notes = dict.fromkeys(note for note in (old.note, new.note) if note)
    return replace(
        new,
        record=new.record or old.record,
        labels={**old.labels, **new.labels},
        passes={**old.passes, **new.passes},
        stratum=new.stratum or old.stratum,
        cluster=new.cluster or old.cluster,
        note="\n".join(notes),
        # The first label counts: what a calibration has seen does not become fresh by a second annotator.
        labelled_at=old.labelled_at or new.labelled_at,
        judged=new.judged or old.judged,
    )


# Whether a calibration still holds.


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One calibration under audit."""

    stored: StoredCalibration
    method: Method
    audit: Audit
    #: fresh labels that it was held against
    labels: int
    #: it was active, and is stale now
    made_stale: bool


def audit_calibrations(store: Store, labels: LabelSet, *, margin: float | None = 0.03) -> list[Audited]:
    """Hold the calibrations of a rubric against labels that they have not seen; one that fails becomes stale.

    Fresh are labels given after the last one that a calibration was made of. The judge's verdicts are those that the
    store has of the same records. Loads numpy.

    Args:
        store: where calibrations and scores are.
        labels: of records that were picked by chance.
        margin: how far off a correction may be, in pass ratio; declared beforehand. None: only measured.

    Raises:
        ConfigError: labels of records that were picked by hand; nothing is calibrated.
        CalibrationError: a calibration in the store cannot be read. StoreError: the database is away.
    """
    if labels.selection != "probability":
        raise ConfigError(
            f"{labels.path}: the records were picked by hand, and tell nothing of what production is like: audit by "
            "records that `assay labels pick` picked"
        )
    found = store.calibrations(labels.rubric)
    if not found:
        raise ConfigError(f"nothing is calibrated of {labels.rubric}: run `assay calibrate` first")
    return [_audit(store, labels, stored, margin, family=len(found)) for stored in found]


def _audit(store: Store, labels: LabelSet, stored: StoredCalibration, margin: float | None, *, family: int) -> Audited:
    import numpy as np

    from assay.calibration import audit, predict_labels

    calibration = _read(stored)
    verdicts = store.verdicts(
        (item.item_id for item in labels.items),
        rubric_hash=stored.rubric_hash,
        judge_fingerprint=stored.judge_fingerprint,
    )
    seen_until = calibration.labelled_to or calibration.created_at
    fresh = [
        at
        for at, item in enumerate(labels.items)
        if item.item_id in verdicts and item.labelled_at is not None and item.labelled_at > seen_until
    ]
    if labels.sha256 == calibration.labels_sha256:
        fresh = []
    columns = labels.columns()
    method = _method(calibration)
    index = np.array(fresh, dtype=np.int64)
    found = [verdicts[labels.items[at].item_id] for at in fresh]
    passed = np.array([verdict.passed for verdict in found], dtype=np.float64)
    # Picked records were picked among those judged, and their probability knows it; a sample of one's own does not.
    picked = {request.record_id for request in store.label_requests(labels.rubric)}
    judged_with = [
        1.0 if labels.items[at].item_id in picked else verdict.judged_with
        for at, verdict in zip(fresh, found, strict=True)
    ]
    result = audit(
        columns.y_true[index],
        predict_labels(passed, calibration.rates, method) if fresh else [],
        sample_weight=columns.sample_weight[index] / np.array(judged_with, dtype=np.float64),
        clusters=[columns.clusters[at] for at in fresh],
        # Where nothing is corrected, nothing was promised that could fail.
        margin=None if method == "none" else margin,
        family=family,
    )
    if method == "none" and fresh:
        result = replace(result, reason="this calibration allows no correction, so there is none that could fail")
    failed = result.state == "failed" and stored.state == "active"
    stale = failed and store.mark_calibration_stale(stored.calibration_id, f"audit: {result.reason}")
    return Audited(stored=stored, method=method, audit=result, labels=len(fresh), made_stale=stale)


def _method(calibration: Calibration) -> Method:
    """The correction that the exporter applies: its rule, asked about a long window like the calibration's own."""
    from assay.calibration import correct
    from assay.windows import Sums

    n = 100_000
    passes = round(n * calibration.rates.judge_pass.value)
    window = Sums(n=n, sum_w=n, sum_w2=n, passes=passes, sum_wp=passes, sum_w2p=passes)
    return correct(window, calibration.rates).method
