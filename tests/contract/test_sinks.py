"""What every sink promises to the outbox, against a stand-in for its service on a real socket.

A new sink is one more `Case` in `tests/sink_vendors.py`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from assay.errors import SinkError
from assay.sinks import Annotation, Delivered, Delivery, Rejected, Sink, Skipped, TryAgain, sink_names
from sink_server import Answer, Request, a_failure, a_json
from sink_vendors import CASES, POISON, SECRET, Case, Service, annotation

HTTP_CASES = [name for name, case in CASES.items() if not case.file]
Opener = Callable[..., Service]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Opener]:
    opened: list[Service] = []

    def start(name: str, **settings: Any) -> Service:
        one = Service(CASES[name], tmp_path, **settings)
        opened.append(one)
        return one

    yield start
    for one in opened:
        one.sink.close()
        one.stop()


def failure(number: int = 0) -> Annotation:
    base = annotation(number)
    return a_failure(evaluation_id=base.evaluation_id, span_id=base.span_id, sink_refs=base.sink_refs)


def deliver_halving(sink: Sink, annotations: Sequence[Annotation]) -> list[Delivery]:
    """As the outbox does it: a batch that one is suspected in is tried in halves."""
    outcome = attempt(sink, annotations)
    if not isinstance(outcome, SinkError):
        return outcome
    assert outcome.suspect, outcome
    assert len(annotations) > 1, outcome
    half = len(annotations) // 2
    return deliver_halving(sink, annotations[:half]) + deliver_halving(sink, annotations[half:])


def attempt(sink: Sink, annotations: Sequence[Annotation]) -> list[Delivery] | SinkError:
    try:
        found = sink.deliver(annotations)
    except SinkError as error:
        return error
    assert len(found) == len(annotations)
    return list(found)


def test_every_sink_is_here() -> None:
    assert sorted(CASES) == sink_names()


@pytest.mark.parametrize("name", CASES)
def test_a_sink_says_what_it_is(service: Opener, name: str) -> None:
    sink, case = service(name).sink, CASES[name]
    assert (sink.name, sink.takes_failures) == (name, case.failures)
    assert 1 <= sink.max_batch <= 1000


@pytest.mark.parametrize("name", CASES)
def test_scores_arrive_where_they_belong(service: Opener, name: str) -> None:
    one, case = service(name), CASES[name]
    done = one.sink.deliver([annotation(n, rubric=r) for n, r in enumerate(["faithfulness", "relevance", "safety"])])
    assert list(done) == [Delivered()] * 3
    found = {(taken.target, taken.rubric, taken.score, taken.error) for taken in one.kept}
    wanted = {(case.target(n), r, case.score, None) for n, r in enumerate(["faithfulness", "relevance", "safety"])}
    assert found == wanted


@pytest.mark.parametrize("name", CASES)
def test_a_whole_batch_at_the_most(service: Opener, name: str) -> None:
    one = service(name)
    n = min(one.sink.max_batch, 120)
    assert list(one.sink.deliver([annotation(i) for i in range(n)])) == [Delivered()] * n
    assert len(one.kept) == n


@pytest.mark.parametrize("name", CASES)
def test_deliveries_come_in_the_order_of_the_annotations(service: Opener, name: str) -> None:
    one = service(name)
    nowhere = annotation(1, trace_id=None, span_id=None, session_id=None)
    nowhere = dataclasses.replace(nowhere, sink_refs={})
    mixed = [annotation(0), nowhere, annotation(2, rubric=POISON), failure(3), annotation(4)]
    done = deliver_halving(one.sink, mixed)
    takes_all = name in {"webhook", "jsonl", "otel"}
    kinds = [type(delivery) for delivery in done]
    assert kinds[0] is kinds[4] is Delivered
    # A log or a webhook has nothing to attach to; an OpenTelemetry event may stand alone.
    assert kinds[1] is (Delivered if takes_all else Skipped)
    assert kinds[2] is (Delivered if name == "jsonl" else Rejected)
    assert kinds[3] is (Delivered if CASES[name].failures else Skipped)
    assert {CASES[name].target(0), CASES[name].target(4)} <= {taken.target for taken in one.kept}


@pytest.mark.parametrize("name", HTTP_CASES)
def test_what_is_refused_is_set_aside_alone_with_its_reason(service: Opener, name: str) -> None:
    one = service(name)
    batch = [annotation(n, rubric=POISON if n == 5 else "faithfulness") for n in range(9)]
    done = deliver_halving(one.sink, batch)
    assert [n for n, delivery in enumerate(done) if isinstance(delivery, Rejected)] == [5]
    assert all(delivery == Delivered() for n, delivery in enumerate(done) if n != 5)
    assert isinstance(done[5], Rejected)
    assert "refused" in done[5].reason
    assert {taken.rubric for taken in one.kept} == {"faithfulness"}


@pytest.mark.parametrize("name", CASES)
def test_failures_go_out_as_errors_or_not_at_all(service: Opener, name: str) -> None:
    one, case = service(name), CASES[name]
    (done,) = one.sink.deliver([failure()])
    if not case.failures:
        assert isinstance(done, Skipped)
        assert one.kept == []
        return
    assert done == Delivered()
    (taken,) = one.kept
    assert taken.score is None
    assert taken.error is not None
    assert taken.error.lower() == "timeout"


@pytest.mark.parametrize("name", CASES)
def test_a_repeat_is_the_same_again(service: Opener, name: str, tmp_path: Path) -> None:
    one = service(name)
    batch = [annotation(0), annotation(1, rubric="relevance")]
    assert list(one.sink.deliver(batch)) == [Delivered()] * 2
    first = [(r.path, r.body) for r in one.requests]
    assert list(one.sink.deliver(batch)) == [Delivered()] * 2
    if CASES[name].file:
        lines = (tmp_path / "lines.jsonl").read_bytes().splitlines()
        assert lines[:2] == lines[2:]
        return
    again = [(r.path, r.body) for r in one.requests if r.method != "GET"][len(first) :]
    assert again == first
    assert len(one.kept) == (2 if CASES[name].keyed else 4)


@pytest.mark.parametrize("name", HTTP_CASES)
@pytest.mark.parametrize("carried", ["evaluation id", "interaction"])
def test_where_a_score_comes_from_goes_with_it(service: Opener, name: str, carried: str) -> None:
    if name == "helicone":
        pytest.skip("Helicone has a name and a number, and no place for anything else")
    one = service(name)
    one.sink.deliver([annotation()])
    sent = b"".join(request.body for request in one.requests).decode()
    wanted = annotation().evaluation_id if carried == "evaluation id" else annotation().rubric_version
    assert str(wanted) in sent or wanted.hex in sent  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CASES)
def test_texts_of_the_interaction_go_only_where_they_were_let_out(service: Opener, name: str, tmp_path: Path) -> None:
    """What the outbox did not put into an annotation cannot go; what it did, only to sinks with a field for it."""
    one = service(name)
    one.sink.deliver([annotation(input="the question", output="the answer")])
    lines = (tmp_path / "lines.jsonl").read_bytes() if CASES[name].file else b""
    sent = b"".join(request.body for request in one.requests) + lines
    assert (b"the question" in sent) == (name in {"otel", "webhook", "jsonl"})


FAULTS: dict[str, Callable[[Request], Answer]] = {
    "overloaded": lambda _: a_json(429, {"error": "slow down"}, retry_after="7"),
    "overloaded, without a time": lambda _: a_json(429, {"error": "slow down"}),
    "broken": lambda _: a_json(500, {"error": "trouble"}),
    "broken behind a proxy": lambda _: (502, {"content-type": "text/html"}, b"<html>Bad gateway</html>"),
    "down": lambda _: a_json(503, {"error": "later"}, retry_after="7"),
    "gateway timeout": lambda _: (504, {}, b""),
    "unauthorized": lambda _: a_json(401, {"error": "no such key"}),
    "forbidden": lambda _: a_json(403, {"error": "not yours"}),
    "elsewhere": lambda _: (302, {"location": "http://127.0.0.1:9/login"}, b""),
}


def must_be_tried_again(outcome: list[Delivery] | SinkError) -> None:
    if isinstance(outcome, list):
        assert outcome
        assert all(isinstance(delivery, TryAgain) for delivery in outcome), outcome


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", HTTP_CASES)
def test_a_sink_that_is_away_loses_nothing(service: Opener, name: str, fault: str) -> None:
    one = service(name)
    one.fault = FAULTS[fault]
    outcome = attempt(one.sink, [annotation(n) for n in range(3)])
    must_be_tried_again(outcome)
    if fault in {"overloaded", "down"}:
        first = outcome[0] if isinstance(outcome, list) else outcome
        assert first.after_seconds == 7  # type: ignore[union-attr]
    if fault in {"unauthorized", "forbidden"}:
        assert isinstance(outcome, SinkError)
        assert outcome.unauthorized
    assert one.kept == []
    one.fault = lambda _: None
    assert list(one.sink.deliver([annotation(n) for n in range(3)])) == [Delivered()] * 3


@pytest.mark.parametrize("name", HTTP_CASES)
def test_a_sink_that_does_not_answer(service: Opener, name: str) -> None:
    one = service(name, timeout_seconds=0.3)
    one.server.answering.clear()
    must_be_tried_again(attempt(one.sink, [annotation(n) for n in range(3)]))
    # Not one wait for each: where it does not answer, the rest are left.
    assert len(one.requests) == 1


@pytest.mark.parametrize("name", HTTP_CASES)
def test_a_sink_that_is_not_there(service: Opener, name: str) -> None:
    one = service(name)
    one.stop()
    outcome = attempt(one.sink, [annotation(n) for n in range(3)])
    assert isinstance(outcome, SinkError)
    assert not outcome.suspect


GARBAGE: dict[str, Answer] = {
    "a page": (200, {"content-type": "text/html"}, b"<!doctype html><title>Log in</title>"),
    "no JSON": (200, {"content-type": "application/json"}, b'{"id": '),
    "bytes": (200, {}, bytes(range(256))),
    "other JSON": (200, {"content-type": "application/json"}, b'["synthetic"]'),
    "deep JSON": (200, {"content-type": "application/json"}, b"[" * 100_000),
}


@pytest.mark.parametrize("name", HTTP_CASES)
def test_an_answer_that_makes_no_sense_is_no_crash(service: Opener, name: str) -> None:
    one = service(name)
    for what, answer in GARBAGE.items():
        one.fault = lambda _, answer=answer: answer
        outcome = attempt(one.sink, [annotation(n) for n in range(2)])
        # Datadog and Opik say nothing in their answers, so only a page can be told from one.
        if CASES[name].knows_its_own and (what == "a page" or name not in {"datadog", "opik"}):
            must_be_tried_again(outcome)


def quoting(request: Request) -> str:
    """As an API does that quotes the key which it refuses, in full."""
    return f"who are you? {json.dumps(request.headers)}"


@pytest.mark.parametrize("name", HTTP_CASES)
def test_secrets_are_in_no_message_and_no_log(
    service: Opener, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    one = service(name)
    said = repr(one.sink)
    for status in (400, 401, 403, 404, 409, 418, 422, 429, 500, 503):
        one.fault = lambda request, status=status: (status, {}, quoting(request).encode())
        outcome = attempt(one.sink, [annotation()])
        said += repr(outcome)
        if isinstance(outcome, SinkError):
            said += f"{outcome} {outcome.__dict__} {outcome.__cause__}"
    said += caplog.text + "".join(capfd.readouterr())
    assert SECRET not in said
    carried = one.requests[0].headers.get("authorization", "").removeprefix("Basic ")
    assert not carried or carried not in said
    if name != "webhook":
        # The stand-in was told it, and quoted it: the test could fail.
        plain = b64decode(carried).decode() if name in {"langfuse", "weave"} else str(one.requests[0].headers)
        assert SECRET in plain


HOSTILE = {
    "huge": "ä" * 3_000_000,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x00",
    "half characters": "before \ud800 after \udfff",
    "not for a header": "x\r\nx-evil: 1\r\n\r\nPOST /evil HTTP/1.1",
    "not for a path": "../../../evil?x=#y/%2e%2e/",
    "markup": "</script><script>alert(1)</script> {{ evil }} ${evil} %s {0} '; DROP TABLE x; --",
    "directions": "\u202e\u2066\ufeff\u200b" + "e\u0301" * 50 + "\U0001f9d1\u200d\U0001f680",
    "JSON": '{"a": ' * 500,
    "nothing": "",
    "blank": " \t ",
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", CASES)
def test_hostile_texts_are_data(service: Opener, name: str, text: str, tmp_path: Path) -> None:
    one, case, hostile = service(name), CASES[name], HOSTILE[text]
    evil = [
        annotation(0, explanation=hostile),
        annotation(1, label=hostile, record_id=hostile, app=hostile, judge_model=hostile),
        annotation(2, session_id=hostile, trace_id=None, span_id=None),
        annotation(3, cohort={hostile: hostile}, defect=hostile),
        dataclasses.replace(failure(4), message=hostile, failure_kind=hostile),
        # 500 characters is the most that a record may have there.
        *([annotation(5, sink_refs={case.ref: hostile[:500]})] if case.ref else []),
    ]
    for one_evil in evil:
        outcome = attempt(one.sink, [one_evil])
        assert not isinstance(outcome, SinkError), outcome
        assert isinstance(outcome[0], Delivered | Rejected | Skipped), outcome
    for request in one.requests:
        request.body.decode("utf-8")
        assert "x-evil" not in request.headers
        # It may stand in a path as one quoted part, never as a way to another.
        assert "evil?" not in request.path
        assert "/../" not in request.path
        assert len(request.body) < 6_000_000 or name in {"otel", "webhook", "phoenix", "mlflow"}
    # It is none the worse for it.
    assert list(one.sink.deliver([annotation(9)])) == [Delivered()]


@pytest.mark.parametrize(
    ("field", "number"), [("value", math.nan), ("value", math.inf), ("raw", -math.inf), ("probability", math.nan)]
)
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_number_is_never_sent(service: Opener, name: str, field: str, number: float, tmp_path: Path) -> None:
    one = service(name)
    try:
        outcome = attempt(one.sink, [annotation(0, **{field: number}), annotation(1)])
    except ValueError:
        outcome = []  # refused before anything went out; the store keeps no such number in the first place
    lines = (tmp_path / "lines.jsonl").read_bytes() if (tmp_path / "lines.jsonl").exists() else b""
    sent = b"".join(request.body for request in one.requests) + lines
    assert b"NaN" not in sent
    assert b"Infinity" not in sent
    if isinstance(outcome, list) and outcome:
        assert outcome[1] == Delivered()


@pytest.mark.parametrize("name", HTTP_CASES)
def test_a_url_may_have_a_path_of_its_own(service: Opener, name: str) -> None:
    """Behind a proxy of one's own."""
    plain = service(name)
    plain.sink.deliver([annotation()])
    below = service(name, url=plain.server.url + "/below/")
    seen = len(plain.requests)
    attempt(below.sink, [annotation()])
    paths = [request.path for request in plain.requests]
    assert all(path.startswith("/below") for path in paths[seen:])
    assert paths[seen].removeprefix("/below") == paths[0].removesuffix("/" if name == "webhook" else "")


@pytest.mark.parametrize("name", HTTP_CASES)
def test_several_batches_at_once(service: Opener, name: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    one = service(name)
    batches = [[annotation(10 * b + i) for i in range(5)] for b in range(8)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(one.sink.deliver, batches))
    assert all(list(deliveries) == [Delivered()] * 5 for deliveries in done)
    assert len(one.kept) == 40


def test_the_cases_say_what_their_sinks_declare() -> None:
    """A stand-in that keeps nothing would let every test here pass."""
    assert all(isinstance(case, Case) and case.read is not case.answer for case in CASES.values() if not case.file)
