"""The client as its users write it. Only type-checked (mypy strict), never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, assert_type
from uuid import UUID

import assay
from assay import (
    ALWAYS_TAKE,
    AssayError,
    Client,
    Context,
    Feedback,
    Interaction,
    Message,
    Record,
    Redactor,
    Rule,
    Stats,
    ToolEvent,
    Usage,
)
from assay.queue import Queue, Report


def construct() -> None:
    Client()
    Client("shop")
    Client(
        "shop",
        redis_url="rediss://example.org:6379/0",
        queue="assay",
        sample_rate=0.1,
        rules=[
            Rule("canary", 1.0, route="/new*"),
            Rule("tenant", 0.5, cohort={"tenant": "blue"}),
            Rule("long", 1.0, when=lambda fields: len(str(fields["output"])) > 5_000),
            Rule("bad", 1.0, when="thumbs_down"),
        ],
        always_take=ALWAYS_TAKE[:2],
        redact=Redactor(kinds=["email", "secret"], extra={"order": r"ORD-\d+"}),
        user_id_salt=b"pepper",
        cohort={"env": "production"},
        buffer_records=1_000,
        close_seconds=2,
        enabled=True,
    )
    Client(redact=None)
    Client(transport=Queue.from_url("redis://localhost", max_batches=100))
    Client(sample_rate="0.1")  # type: ignore[arg-type]
    Rule("x", 1.0, when="thumb_down")  # type: ignore[arg-type]
    Redactor(kinds=["e-mail"])  # type: ignore[list-item]


def record(client: Client) -> None:
    assert_type(client.record(input="q", output="a"), str | None)
    client.record(
        input=[Message(role="user", content="q"), {"role": "assistant", "content": "a"}],
        output={"total": 1},
        contexts=["passage", Context(text="passage", score=0.5), {"text": "passage", "id": "7"}],
        reference="a",
        required_fields=["total"],
        trace_id=0x0AF7651916CD43DD8448EB211C80319C,
        span_id="b7ad6b7169203331",
        session_id="s",
        user_id="u",
        route="/ask",
        model="small",
        prompt_version="7",
        cohort={"tenant": "blue"},
        usage=Usage(prompt_tokens=10, cost_usd=0.01),
        latency_seconds=1.5,
        finish_reason="stop",
        tool_events=[ToolEvent(name="search", arguments="{}"), {"name": "mail"}],
        feedback=Feedback(thumb="up"),
        metadata={"anything": [1, 2]},
        sink_refs={"mlflow_request_id": "7"},
        timestamp=datetime.now(UTC),
        record_id="r1",
    )
    client.record(input="q", trace_id=UUID(int=1), timestamp=1_700_000_000.0, usage={"prompt_tokens": 1})
    client.record(inputt="q")  # type: ignore[call-arg]
    client.record(input="q", latency_seconds="fast")  # type: ignore[arg-type]


def interaction(client: Client) -> None:
    with client.interaction(input="q", route="/ask") as it:
        assert_type(it, Interaction)
        it.contexts.append("passage")
        it.contexts = ["passage", Context(text="passage")]
        it.output = "a"
        it.usage = Usage(prompt_tokens=1)
        it.metadata["k"] = "v"
        it.answer = "a"  # type: ignore[attr-defined]
    assert_type(it.record_id, str | None)


async def interaction_of_a_coroutine(client: Client) -> None:
    async with client.interaction(input="q") as it:
        assert_type(it, Interaction)


async def observe(client: Client) -> None:
    @client.observe
    def answer(question: str, top: int = 3) -> str:
        return question

    assert_type(answer("q", top=5), str)
    answer(5)  # type: ignore[arg-type]

    @client.observe(input_from="question", contexts_from="passages", route="/ask", cohort={"t": "x"})
    def answer_from(passages: list[str], question: str) -> dict[str, str]:
        return {}

    assert_type(answer_from([], "q"), dict[str, str])

    def reply_fields(reply: dict[str, str]) -> Mapping[str, Any]:
        return {"output": reply["text"]}

    @client.observe(capture=reply_fields)
    async def answer_later(question: str) -> dict[str, str]:
        return {}

    assert_type(await answer_later("q"), dict[str, str])

    @client.observe
    def stream(question: str) -> Iterator[str]:
        yield question

    assert_type(stream("q"), Iterator[str])

    @client.observe
    async def stream_later(question: str) -> AsyncIterator[str]:
        yield question

    assert_type(stream_later("q"), AsyncIterator[str])
    client.observe(rout="/ask")  # type: ignore[call-overload]


def life(client: Client) -> None:
    with client as same:
        assert_type(same, Client)
    assert_type(client.flush(), bool)
    assert_type(client.flush(timeout_seconds=1.0), bool)
    client.close()
    stats = client.stats()
    assert_type(stats, Stats)
    assert_type(stats.taken, int)
    assert_type(stats.dropped["buffer_full"], int)
    stats.dropped["bufer_full"]  # type: ignore[index]


class OwnTransport:
    """Anything with these two methods will do."""

    def push(
        self, payload: bytes, *, batch_id: str, records: int, enqueued_at: float, report: Report | None = None
    ) -> bool:
        return True

    def add_counters(self, report: Report) -> None:
        """Nothing is counted here."""


def hooks() -> None:
    def hide(record: Record) -> Record:
        return record

    redact: Callable[[Record], Record] = Redactor()
    Client(redact=hide, transport=OwnTransport())
    Client(redact=redact)
    Client(transport=object())  # type: ignore[arg-type]
    Client(redact=lambda record: "text")  # type: ignore[arg-type,return-value]


def errors() -> None:
    try:
        Client(sample_rate=2)
    except AssayError as error:
        assert_type(error, AssayError)
    assert_type(assay.__version__, str)
