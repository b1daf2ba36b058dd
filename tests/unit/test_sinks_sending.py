from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from assay.errors import SinkError
from assay.sinks import Delivered, Delivery, Rejected, Skipped, TryAgain
from assay.sinks._http import Reply
from assay.sinks._sending import batched, clip, facts, one_by_one, plain_id, understood
from sink_server import an_annotation

AWAY, BROKEN = SinkError("away", after_seconds=4.0), SinkError("500", suspect=True)


@pytest.mark.parametrize(
    ("text", "clipped"),
    [
        ("short", "short"),
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 9 + "…"),
        ("a\tb\nc\r\x00d\ud800", "a\tb\nc\r\ufffdd\ufffd"),
        ("", ""),
    ],
)
def test_a_text_is_clipped_and_has_no_control_characters(text: str, clipped: str) -> None:
    assert clip(text, 10) == clipped
    clip(text, 10).encode()


def test_facts_are_short() -> None:
    known = facts(an_annotation(app="x" * 5000, cohort={"k" * 900: "v"}))
    assert max(len(value) for value in known.values() if isinstance(value, str)) == 500
    assert max(map(len, known)) == 200
    assert known["raw"] == 4.0


@pytest.mark.parametrize("given", ["", "../x", "a b", "a/b", "x" * 129, "é"])
def test_ids_that_may_not_stand_in_a_url(given: str) -> None:
    found = plain_id(an_annotation(sink_refs={"it": given}), "it")
    assert found is None if not given else isinstance(found, Rejected)


def test_an_id_that_may() -> None:
    assert plain_id(an_annotation(sink_refs={"it": "aZ-09_"}), "it") == "aZ-09_"
    assert plain_id(an_annotation(), "it") is None


def reply(status: int, body: bytes, kind: str = "application/json") -> Reply:
    return Reply(status, {"content-type": kind}, body)


@pytest.mark.parametrize(
    ("answer", "names", "fine"),
    [
        (reply(200, b'{"id": 1}'), ("id",), True),
        (reply(200, b'{"error": null}'), ("data", "error"), True),
        (reply(200, b'{"other": 1}'), ("id",), False),
        (reply(200, b"[1]"), ("id",), False),
        (reply(200, b""), ("id",), False),
        (reply(204, b""), (), True),
        (reply(200, b"<html>", "text/html; charset=utf-8"), (), False),
        (reply(200, b"  <!doctype html>", ""), (), False),
        (reply(404, b"<html>", "text/html"), ("id",), True),
    ],
)
def test_an_answer_of_something_else(answer: Reply, names: tuple[str, ...], fine: bool) -> None:
    if fine:
        assert understood("it", answer, *names) is answer
    else:
        with pytest.raises(SinkError, match="it: answers 200 but not as its API does"):
            understood("it", answer, *names)


def scripted(*outcomes: Delivery | Exception) -> Callable[[Any], Delivery]:
    left = list(outcomes)

    def send(_: Any) -> Delivery:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return send


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([Delivered(), Rejected("no"), Delivered()], [Delivered(), Rejected("no"), Delivered()]),
        ([Delivered(), AWAY], [Delivered(), TryAgain("away", 4.0), TryAgain("away", 4.0)]),
        ([Rejected("no"), AWAY], [Rejected("no"), TryAgain("away", 4.0), TryAgain("away", 4.0)]),
        ([BROKEN, Delivered(), Delivered()], [TryAgain("500"), Delivered(), Delivered()]),
        ([BROKEN, BROKEN, Delivered()], [TryAgain("500"), TryAgain("500"), Delivered()]),
        ([ValueError("nan"), Delivered(), Delivered()], [Rejected("no JSON: nan"), Delivered(), Delivered()]),
    ],
)
def test_one_by_one(outcomes: list[Any], expected: list[Delivery]) -> None:
    assert one_by_one([1, 2, 3], scripted(*outcomes)) == expected


@pytest.mark.parametrize(
    "outcomes", [[AWAY], [Skipped("nowhere"), AWAY], [Skipped("nowhere"), Skipped("nowhere"), AWAY]]
)
def test_a_sink_that_is_away_from_the_first_call_on_is_said_to_be(outcomes: list[Any]) -> None:
    with pytest.raises(SinkError) as caught:
        one_by_one([1, 2, 3], scripted(*outcomes))
    assert caught.value is AWAY


def test_a_500_for_the_only_one_is_for_the_outbox_to_judge() -> None:
    with pytest.raises(SinkError) as caught:
        one_by_one([1], scripted(BROKEN))
    assert caught.value.suspect


def test_batches_within_their_size() -> None:
    sent: list[int] = []

    def send(items: list[dict[str, Any]]) -> list[Delivery]:
        sent.append(len(items))
        return [Delivered()] * len(items)

    annotations = [an_annotation(record_id=f"r{n}", explanation="x" * (500 if n == 3 else 40)) for n in range(6)]

    def make(annotation: Any) -> Any:
        return Skipped("no") if annotation.record_id == "r1" else {"e": annotation.explanation}

    done = batched(annotations, make, send, most_bytes=100)
    assert sent == [2, 2]
    assert [type(delivery) for delivery in done] == [Delivered, Skipped, Delivered, Rejected, Delivered, Delivered]
