# ruff: noqa: PT017 - a target looks at the error and at the outcome alike
"""What hostile bytes are given to: one function for each reader, which may raise what its docstring names only.

Each returns whether the bytes were taken. `test_readers.py` calls them with mutated documents in every run,
`coverage_guided.py` for as long as wished with inputs that follow the coverage. All documents are synthetic.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from assay.budgets import check_budgets_file, load_budgets
from assay.calibration.artefact import Calibration
from assay.codec import decode_record
from assay.collect import gunzip, weight
from assay.enqueue import _records_of
from assay.errors import CalibrationError, FileError, LabelErrors, RecordError, RubricError, SettingsError, VerdictError
from assay.interactions import as_record
from assay.judges._prices import load_prices
from assay.judges._reply import find_verdicts, grade_distribution, read_defects
from assay.label_imports import import_labels
from assay.labels import read_labels
from assay.otlp import OtlpError, Request, read_logs, read_logs_json, read_traces, read_traces_json
from assay.queue import client_counter, decode_batch, encode_batch, is_batch, is_doorbell
from assay.records import Record
from assay.rows import raw_rows, read_rows
from assay.rubrics import check_rubrics, load_rubrics
from assay.spans import interactions
from calibrations import a_calibration

RUBRICS: Final = load_rubrics()
FAITHFULNESS: Final = next(r for r in RUBRICS if r.name == "faithfulness")
AT: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)
RECORD: Final = Record(record_id="r1", timestamp=AT, app="shop", input="Synthetic question?", output="An answer.")
_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="assay-fuzz-")


@dataclass(frozen=True)
class Target:
    """A reader, and documents that it takes, from which mutations start."""

    read: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]
    #: a document that it takes, which grows with the number; None where size is bounded low
    grown: Callable[[int], bytes] | None = None


def _file(data: bytes, suffix: str) -> Path:
    path = Path(_DIRECTORY.name) / f"input{suffix}"
    path.write_bytes(data)
    return path


def batch(data: bytes) -> bool:
    meant = is_batch(data)
    try:
        found = decode_batch(data)
    except RecordError as error:
        assert error.reason in ("undecodable", "unknown_version", "invalid")
        return False
    assert math.isfinite(found.enqueued_at)
    # Nothing is lost: what was read is written as it came, and read again.
    again = encode_batch(
        found.records,
        batch_id=found.batch_id,
        enqueued_at=found.enqueued_at,
        attempt=found.attempt,
        replay=found.replay,
        probabilities=found.probabilities,
        rubrics=found.rubrics,
    )
    assert decode_batch(again) == found
    assert is_batch(again)
    assert meant or b"record_id" in data or b"\\u" in data
    return True


def doorbell(data: bytes) -> bool:
    named = client_counter(data.decode(errors="replace")) is not None
    return is_doorbell(data) or named


def record(data: bytes) -> bool:
    try:
        found = decode_record(data, at=AT)
    except RecordError as error:
        assert error.reason in ("too_large", "undecodable", "unknown_version", "invalid")
        assert "\n" not in str(error) or b"\\n" in data or b"\n" in data
        return False
    assert decode_record(found.to_json(), max_bytes=10**9, at=AT) == found
    return True


def dead_letter(data: bytes) -> bool:
    try:
        return bool([found.to_json() for found in _records_of(data)])
    except RecordError:
        return False


def rubric(data: bytes) -> bool:
    path = _file(data, ".yaml")
    mistakes = check_rubrics([path])
    try:
        [found] = load_rubrics([path])
    except RubricError as error:
        assert str(error) == str(mistakes[0])
    else:
        assert not mistakes
        assert len(found.hash) == 64
    return not mistakes


def budgets(data: bytes) -> bool:
    path = _file(data, ".yaml")
    mistakes = check_budgets_file(path)
    try:
        load_budgets(path)
    except FileError:
        assert mistakes
    else:
        assert not mistakes
    return not mistakes


def prices(data: bytes) -> bool:
    try:
        return bool(load_prices(_file(data, ".yaml")).models)
    except SettingsError as error:
        assert "\n" not in str(error)
        return False


def labels(data: bytes) -> bool:
    taken = False
    for suffix in (".jsonl", ".csv"):
        for name in ("faithfulness", "completeness"):
            chosen = next(r for r in RUBRICS if r.name == name)
            try:
                found = read_labels(_file(data, suffix), chosen)
            except LabelErrors as error:
                assert error.errors
            else:
                assert all(math.isfinite(value) for value in found.y_true)
                taken = True
    return taken


def exports(data: bytes) -> bool:
    taken = False
    for source in ("langfuse", "phoenix", "label-studio"):
        for suffix in (".json", ".csv"):
            try:
                taken |= bool(import_labels(_file(data, suffix), source, FAITHFULNESS).items)
            except LabelErrors as error:
                assert error.errors
    return taken


def rows(data: bytes) -> bool:
    taken = False
    for form in ("jsonl", "csv"):
        raw = list(raw_rows(BytesIO(data), form))
        assert all((row.fields is None) == (row.error is not None) for row in raw)
        for unknown in ("refuse", "metadata"):
            found = list(read_rows(BytesIO(data), form=form, unknown=unknown))
            # Each row is a record or kept with its mistake.
            assert len(found) == len(raw)
            assert all((row.record is None) == (row.error is not None) for row in found)
            taken |= bool(found) and all(row.record is not None for row in found)
    return taken


def reply(data: bytes) -> bool:
    text = data.decode(errors="surrogatepass" if b"\xed" in data else "replace") if _is_text(data) else repr(data)
    try:
        find_verdicts(text, [RUBRICS[0].name], RUBRICS[0].scale.schema()["required"])
    except VerdictError as error:
        assert error.kind == "unparsable"
    try:
        verdicts = find_verdicts(text, [r.name for r in RUBRICS])
    except VerdictError as error:
        assert error.kind == "unparsable"
        return False
    read_defects(verdicts.members.get("defects"))
    for chosen in RUBRICS:
        verdict = verdicts.members.get(chosen.name)
        try:
            score = chosen.scale.parse(verdict, RECORD, pass_threshold=chosen.pass_threshold)
        except VerdictError as error:
            assert error.kind in ("unparsable", "off_scale")
        else:
            assert getattr(score, "value", None) is None or 0 <= score.value <= 1
        span = verdicts.span(chosen.name, chosen.scale.grade_field or "x")
        if span is not None:
            tokens = verdicts.members.get("tokens", [{"token": text, "logprob": -0.1}])
            shares = grade_distribution(tokens, text, span, ["1", "2", "pass", "fail"])
            assert shares is None or abs(sum(shares.values()) - 1) < 1e-9
    return True


def _is_text(data: bytes) -> bool:
    try:
        data.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def traces(data: bytes) -> bool:
    taken = False
    for read in (read_traces, read_traces_json, read_logs, read_logs_json):
        try:
            taken |= _intake(read(data))
        except OtlpError:
            continue
    return taken


def _intake(request: Request) -> bool:
    for span in request.spans:
        weight(span.attributes)
    for span, fields in interactions(request.spans).interactions:
        assert span in request.spans
        with contextlib.suppress(RecordError):
            as_record("shop", fields, None)
    return bool(request.spans)


def packed(data: bytes) -> bool:
    try:
        found = gunzip(data, 10_000)
    except OtlpError:
        return False
    assert found is None or len(found) <= 10_000
    return found is not None


def calibration(data: bytes) -> bool:
    try:
        Calibration.from_json(data)
    except CalibrationError:
        return False
    return True


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_RECORD: Final = RECORD.to_json().encode()
_HEAD: Final = {
    "label_file": 1,
    "rubric": "faithfulness",
    "annotators": "human",
    "gold": "majority",
}
_SPAN: Final = {
    "traceId": "a" * 32,
    "spanId": "b" * 16,
    "name": "chat",
    "startTimeUnixNano": "1",
    "endTimeUnixNano": "2",
    "attributes": [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.request.model", "value": {"stringValue": "m"}},
        {"key": "gen_ai.input.messages", "value": {"stringValue": '[{"role":"user","content":"Q"}]'}},
        {"key": "gen_ai.output.messages", "value": {"arrayValue": {"values": [{"kvlistValue": {"values": []}}]}}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}},
        {"key": "score", "value": {"doubleValue": 0.5}},
    ],
    "events": [{"name": "gen_ai.choice", "attributes": []}],
}
_BELL: Final = {
    "body": "W1sieCJdLHt9LHt9XQ==",
    "content-type": "application/json",
    "headers": {"id": "x", "task": "assay.score_batch"},
    "properties": {
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "assay"},
        "delivery_tag": "t",
    },
}

_ENQUEUED: Final = {"batch_id": "b1", "enqueued_at": 1.5}
_SCORE: Final = {
    "id": "s1",
    "traceId": "t1",
    "timestamp": "2026-05-29T13:46:19.963Z",
    "source": "ANNOTATION",
    "name": "faithfulness",
    "dataType": "NUMERIC",
    "value": 1,
    "authorUserName": "ann",
}
_ANNOTATION: Final = {
    "span_id": "s1",
    "name": "faithfulness",
    "annotator_kind": "HUMAN",
    "result": {"label": "pass", "score": 1.0, "explanation": "so"},
    "updated_at": "2026-05-30T13:46:19.963000+00:00",
    "user_id": "ann",
}
_TASK: Final = {
    "id": 1,
    "annotations": [
        {
            "id": 1000,
            "completed_by": {"id": 1, "email": "ann@example.org"},
            "was_cancelled": False,
            "updated_at": "2026-03-09T22:17:08.728378Z",
            "result": [
                {"from_name": "faithfulness", "to_name": "a", "type": "choices", "value": {"choices": ["pass"]}}
            ],
        }
    ],
    "data": {"input": "q", "output": "a", "contexts": ["c"]},
}


def _traces(spans: int) -> bytes:
    return _json({"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"spans": [_SPAN] * spans}]}]})


def _label_file(count: int) -> bytes:
    items = (_json({"record_id": f"r{place}", "labels": {"ann": "pass", "bob": "fail"}}) for place in range(count))
    return b"\n".join([_json(_HEAD), *items]) + b"\n"


def _grown_record(count: int) -> bytes:
    return _RECORD[:-1] + b',"metadata":{"found":[' + b",".join([b"[1.5]"] * count) + b"]}}"


def _reply(count: int) -> bytes:
    claims = [{"claim": "c", "verdict": "supported"}] * count
    return _json({r.name: {"reason": "so", "verdict": "pass", "level": 2, "claims": claims} for r in RUBRICS})


TARGETS: Final = {
    "batch": Target(
        batch,
        (encode_batch([_RECORD, _RECORD], attempt=1, **_ENQUEUED),),
        lambda count: encode_batch([_RECORD] * count, **_ENQUEUED),
    ),
    "doorbell": Target(
        doorbell, (_json(_BELL), _json(["shop", "sent"])), lambda count: _json(_BELL | {"more": ["x"] * count})
    ),
    "record": Target(record, (_RECORD,), _grown_record),
    "dead_letter": Target(
        dead_letter,
        (_RECORD, encode_batch([_RECORD], **_ENQUEUED)),
        lambda count: encode_batch([_RECORD] * count, **_ENQUEUED),
    ),
    "rubric": Target(rubric, tuple(r.path.read_bytes() for r in RUBRICS[:2] if r.path is not None)),
    "budgets": Target(budgets, (b"budgets:\n  - name: all\n    usd: 5\n    per: day\n",)),
    "prices": Target(prices, (b"as_of: 2026-01-31\nmodels:\n  synthetic-small: {prompt: 0.25, completion: 2.00}\n",)),
    "labels": Target(labels, (_label_file(1), b"record_id,annotator,label\nr1,ann,pass\nr2,ann,fail\n"), _label_file),
    "exports": Target(
        exports,
        (
            _json([_SCORE]),
            _json({"data": [_ANNOTATION], "next_cursor": None}),
            _json([_TASK]),
            b"traceId,name,source,dataType,value\nt1,faithfulness,ANNOTATION,NUMERIC,1\n",
        ),
        lambda count: _json([_SCORE | {"traceId": f"t{place}"} for place in range(count)]),
    ),
    "rows": Target(
        rows,
        (_RECORD + b"\n", b'app,input,output,metadata,extra\nshop,q,a,"{""k"": 1}",x\n'),
        lambda count: (_RECORD + b"\n") * count,
    ),
    "reply": Target(
        reply,
        (_reply(0), b'Thoughts ```json\n{"faithfulness": {"verdict": "pass"}, "defects": ["faithfulness:none"]}\n```'),
        _reply,
    ),
    "traces": Target(traces, (_traces(1),), _traces),
    "packed": Target(packed, (gzip.compress(b"synthetic" * 9, mtime=0),)),
    "calibration": Target(calibration, (a_calibration().to_json().encode(),)),
}
