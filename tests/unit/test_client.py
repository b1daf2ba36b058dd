from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from typing import Any

import pytest

from assay import Client, Context, Feedback, Rule
from assay.errors import QueueError, SettingsError
from assay.queue import MAX_BATCH_BYTES
from assay.records import Record, Sampling
from assay.redaction import hash_user_id
from assay.sampling import sample_unit
from transports import MemoryTransport, one_record

QUESTION, ANSWER = "Where is my parcel?", "It arrives tomorrow."


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "QUEUE", "SAMPLE_RATE", "ENABLED", "USER_ID_SALT"):
        monkeypatch.delenv(f"ASSAY_{name}", raising=False)


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport()


@pytest.fixture
def client(transport: MemoryTransport) -> Iterator[Client]:
    with Client("shop", transport=transport) as client:
        yield client


def sent(client: Client, transport: MemoryTransport) -> Any:
    assert client.flush()
    return one_record(transport)


# record


def test_record(client: Client, transport: MemoryTransport) -> None:
    record_id = client.record(input=QUESTION, output=ANSWER, contexts=["passage"], route="/ask", latency_seconds=1.5)
    record = sent(client, transport)
    assert record_id == record.record_id
    assert (record.app, record.input, record.output, record.route) == ("shop", QUESTION, ANSWER, "/ask")
    assert record.contexts == (Context(text="passage"),)
    assert record.sampling == Sampling(probability=1.0, rule="default")
    assert client.stats().taken == client.stats().sent == 1


def test_ids_are_new_and_alike(client: Client) -> None:
    ids = {client.record(input=QUESTION, output=ANSWER) for _ in range(100)}
    assert len(ids) == 100
    assert {len(record_id or "") for record_id in ids} == {32}


def test_ids_of_two_clients_differ(transport: MemoryTransport) -> None:
    with Client(transport=transport) as one, Client(transport=transport) as two:
        assert one.record(input="a") != two.record(input="a")


def test_own_record_id(client: Client, transport: MemoryTransport) -> None:
    assert client.record(record_id="mine", input=QUESTION) == "mine"
    assert sent(client, transport).record_id == "mine"


def test_what_is_changed_after_the_call_is_not_sent(client: Client, transport: MemoryTransport) -> None:
    messages, contexts = [{"role": "user", "content": "first"}], ["a"]
    client.record(input=messages, contexts=contexts)
    messages.append({"role": "user", "content": "second"})
    contexts.clear()
    record = sent(client, transport)
    assert len(record.input) == len(record.contexts) == 1


def test_an_unknown_field_does_not_raise(
    client: Client, transport: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    client.record(inputt=QUESTION)  # type: ignore[call-arg]
    assert client.flush()
    assert client.stats().dropped == {"invalid": 1}
    assert "inputt: is not a field of a record" in caplog.text


@pytest.mark.parametrize("value", [object(), 5, b"\xff", {1: {2}}, [[]], float("nan"), "\ud800", "\0"])
@pytest.mark.parametrize(
    "name",
    ["input", "output", "contexts", "cohort", "usage", "metadata", "timestamp", "trace_id", "record_id", "route"],
)
def test_no_value_raises_or_is_lost_count_of(
    client: Client, transport: MemoryTransport, name: str, value: object
) -> None:
    client.record(**{name: value})  # type: ignore[arg-type]
    client.flush()
    stats = client.stats()
    assert stats.taken == 1
    assert stats.sent + sum(stats.dropped.values()) == 1
    assert set(stats.dropped) <= {"invalid", "internal_error"}


def test_an_object_that_raises_when_looked_at(client: Client) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

        __hash__ = None  # type: ignore[assignment]

    client.record(output=Broken(), trace_id=Broken(), finish_reason=Broken())  # type: ignore[arg-type]
    client.record(output=Broken())
    client.flush()
    assert client.stats().dropped == {"internal_error": 1, "invalid": 1}


def test_lone_surrogates_become_question_marks(client: Client, transport: MemoryTransport) -> None:
    client.record(output="a\ud800b")
    assert sent(client, transport).output == "a?b"


# sampling


def test_sampling_by_trace_id_in_any_form(transport: MemoryTransport) -> None:
    with Client(transport=transport, sample_rate=0.5) as client:
        for number in range(1, 201):
            hexadecimal = f"{number * 7919:032x}"
            expected = sample_unit(hexadecimal) < 0.5
            assert (client.record(input="a", trace_id=hexadecimal) is not None) is expected
            assert (client.record(input="a", trace_id=number * 7919) is not None) is expected
        stats = client.stats()
        assert stats.taken + stats.sampled_out == 400
        assert client.flush()
        assert {record.sampling for record in transport.records} == {Sampling(probability=0.5, rule="default")}


def test_sampling_without_a_trace_id_goes_by_record_id(transport: MemoryTransport) -> None:
    with Client(transport=transport, sample_rate=0.3) as client:
        for number in range(100):
            taken = client.record(input="a", record_id=str(number)) is not None
            assert taken is (sample_unit(str(number)) < 0.3)


@pytest.mark.parametrize("nothing", ["", 0, None, "0" * 32])
def test_no_trace_is_not_one_trace(transport: MemoryTransport, nothing: Any) -> None:
    """What OpenTelemetry gives outside of a span must not take all or none."""
    with Client(transport=transport, sample_rate=0.5) as client:
        taken = [client.record(input="a", trace_id=nothing, record_id=str(number)) for number in range(100)]
        assert taken == [str(number) if sample_unit(str(number)) < 0.5 else None for number in range(100)]
        assert client.flush()
        assert {record.trace_id for record in transport.records} == {None}


def test_default_rules_take_what_matters(transport: MemoryTransport) -> None:
    with Client(transport=transport, sample_rate=0.0) as client:
        assert client.record(input="a") is None
        assert client.record(input="a", feedback=Feedback(thumb="down"))
        assert client.record(input="a", feedback={"thumb": "down"})
        assert client.record(input="a", finish_reason="error")
        assert client.record(input="a", finish_reason="length")
        assert client.flush()
    assert [record.sampling.rule for record in transport.records] == ["thumbs_down", "thumbs_down", "error", "length"]


def test_what_matters_is_taken_before_own_rules_unless_told_otherwise(transport: MemoryTransport) -> None:
    noisy = [Rule("noisy", 0.0, route="/health")]
    with Client(transport=transport, rules=noisy) as client:
        assert client.record(input="a", route="/health") is None
        assert client.record(input="a", route="/health", finish_reason="length")
        assert sent(client, transport).sampling.rule == "length"
    with Client(transport=transport, rules=noisy, always_take=()) as client:
        assert client.record(input="a", route="/health", finish_reason="length") is None


def test_own_rules_see_the_clients_cohort(transport: MemoryTransport) -> None:
    rules = [Rule("blue", 1.0, cohort={"tenant": "blue"})]
    with Client(transport=transport, sample_rate=0.0, rules=rules, cohort={"tenant": "blue", "env": "x"}) as client:
        assert client.record(input="a", cohort={"env": "y"})
        assert client.record(input="a", cohort={"tenant": "red"}) is None
        assert sent(client, transport).cohort == {"tenant": "blue", "env": "y"}


def test_a_rule_that_raises_is_counted(transport: MemoryTransport) -> None:
    with Client(transport=transport, rules=[Rule("bad", 1.0, when=lambda fields: fields["x"])]) as client:
        assert client.record(input="a")
        assert client.stats().rule_errors == 1


# redaction and user ids


def test_redaction_by_default(client: Client, transport: MemoryTransport) -> None:
    client.record(input="I am x@example.com", output=ANSWER)
    assert sent(client, transport).input == "I am [email]"


def test_no_redaction(transport: MemoryTransport) -> None:
    with Client(transport=transport, redact=None) as client:
        client.record(input="x@example.com")
        assert sent(client, transport).input == "x@example.com"


def test_a_redact_hook_that_raises_sends_nothing(transport: MemoryTransport, caplog: pytest.LogCaptureFixture) -> None:
    def hook(record: Record) -> Record:
        raise ValueError("the secret is 42")

    with Client(transport=transport, redact=hook) as client:
        client.record(input="x@example.com")
        assert client.flush()
        assert client.stats().dropped == {"redaction_error": 1}
    assert transport.batches == []
    assert "redaction_error" in caplog.text
    assert "42" not in caplog.text, "what a hook raises may quote the record"


@pytest.mark.parametrize("result", [None, "text", {"input": "x"}])
def test_a_redact_hook_that_gives_back_no_record(transport: MemoryTransport, result: Any) -> None:
    with Client(transport=transport, redact=lambda record: result) as client:
        client.record(input="a")
        assert client.flush()
        assert client.stats().dropped == {"redaction_error": 1}


def test_user_ids_are_hashed_before_the_hook(transport: MemoryTransport) -> None:
    seen: list[Record] = []

    def hook(record: Record) -> Record:
        seen.append(record)
        return record

    with Client(transport=transport, user_id_salt="pepper", redact=hook) as client:
        client.record(input="a", user_id="ada")
        assert sent(client, transport).user_id == hash_user_id("ada", "pepper") == seen[0].user_id


def test_without_a_salt_user_ids_are_not_sent(
    client: Client, transport: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    client.record(input="a", user_id="ada")
    assert sent(client, transport).user_id is None
    assert "ASSAY_USER_ID_SALT" in caplog.text


# bounds


def test_a_record_that_is_too_large(transport: MemoryTransport) -> None:
    with Client(transport=transport, max_record_bytes=10_000) as client:
        assert client.record(output="x" * 9_000)
        assert client.record(output="\u00e9" * 9_000), "its bytes are counted when it is encoded"
        assert client.record(output="x" * 30_000) is None
        assert client.flush()
        stats = client.stats()
        assert (stats.sent, stats.dropped) == (1, {"too_large": 2})


def test_the_byte_bound_counts_what_is_nested(transport: MemoryTransport) -> None:
    transport.answering.clear()
    with Client(transport=transport, buffer_bytes=2_000_000, close_seconds=0, flush_seconds=60) as client:
        for number in range(100):
            client.record(metadata={"response": {"choices": [{"message": {"content": "x" * 100_000 + str(number)}}]}})
        assert client.stats().dropped["buffer_full"] > 70
        transport.answering.set()


def test_a_message_with_a_large_image_is_sent(client: Client, transport: MemoryTransport) -> None:
    image = {"type": "image_url", "image_url": {"url": "x" * 5_000_000}}
    client.record(input=[{"role": "user", "content": [{"type": "text", "text": "what is this"}, image]}])
    assert sent(client, transport).input[0].content == "what is this\n[image_url]"


def test_batches_are_bounded_in_records_and_bytes(transport: MemoryTransport) -> None:
    with Client(transport=transport, flush_seconds=60) as client:
        for _ in range(60):
            client.record(input="small")
        assert client.flush(30)
        assert transport.sizes == [25, 25, 10]
        for _ in range(10):
            client.record(input="x" * 900_000)
        assert client.flush(30)
        assert transport.sizes[3:] == [4, 4, 2]
        for batch in transport.batches:
            assert sum(len(raw) for raw in batch.records) < MAX_BATCH_BYTES


def test_order_is_kept(client: Client, transport: MemoryTransport) -> None:
    ids = [client.record(input=str(number)) for number in range(120)]
    assert client.flush()
    assert [record.record_id for record in transport.records] == ids


# life


def test_disabled(transport: MemoryTransport) -> None:
    with Client(transport=transport, enabled=False) as client:
        assert client.record(input="a") is None
        assert client.flush()
        assert client.stats().taken == 0
    assert transport.pushes == 0


def test_recording_after_close_is_counted(client: Client) -> None:
    client.close()
    assert client.record(input="a") is None
    assert client.stats().dropped == {"closed": 1}
    client.close()


def test_close_sends_what_is_left(transport: MemoryTransport) -> None:
    client = Client(transport=transport, flush_seconds=60, close_seconds=10)
    client.record(input="a")
    client.close()
    assert transport.sizes == [1]
    assert client.stats().sent == 1


def test_counts_reach_the_transport(transport: MemoryTransport) -> None:
    with Client("shop", transport=transport, sample_rate=0.0, close_seconds=10) as client:
        client.record(input="a")
        client.record(input="b", finish_reason="error")
        client.record(finish_reason="error", latency_seconds=-1)
    assert transport.count("taken", "shop") == 2
    assert transport.count("sampled_out", "shop") == 1
    assert transport.count("sent", "shop") == 1
    assert transport.count("dropped:invalid", "shop") == 1


def test_counts_without_any_batch_reach_the_transport(transport: MemoryTransport) -> None:
    with Client(transport=transport, rules=(), close_seconds=10) as client:
        client.record(latency_seconds=-1)
    assert transport.batches == []
    assert transport.count("dropped:invalid") == 1


def test_a_repeated_report_counts_once(transport: MemoryTransport) -> None:
    transport.lost_replies = 2
    with Client(transport=transport, close_seconds=10) as client:
        client.record(input="a")
        assert client.flush(10)
        assert client.stats().sent == 1
    assert transport.pushes == 3
    assert transport.sizes == [1]
    assert transport.count("taken") == transport.count("sent") == 1


def test_counts_of_a_failed_report_are_not_lost(transport: MemoryTransport) -> None:
    transport.error = QueueError("away")
    client = Client(transport=transport, close_seconds=10)
    client.record(input="a")
    assert not client.flush(0.05)
    client.record(latency_seconds=-1)
    transport.error = None
    assert client.flush(10)
    client.close()
    assert transport.count("taken") == 2
    assert transport.count("sent") == transport.count("dropped:invalid") == 1


def test_queue_full_is_shed_and_counted(
    client: Client, transport: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.full = True
    client.record(input="a")
    client.record(input="b")
    assert client.flush()
    assert client.stats().dropped == {"queue_full": 2}
    assert "are the workers running?" in caplog.text
    transport.full = False
    client.record(input="c")
    assert sent(client, transport).input == "c"
    client.close()
    assert transport.count("dropped:queue_full", "shop") == 2


def test_warnings_of_a_kind_come_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "assay.client"):
        for _ in range(50):
            client.record(latency_seconds=-1)
        assert client.flush()
    assert len(caplog.records) == 1


def test_flush_of_nothing(client: Client) -> None:
    assert client.flush(0)


# settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"app": ""}, "app"),
        ({"app": "x" * 101}, "app"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"sample_rate": float("nan")}, "sample_rate"),
        ({"batch_records": 0}, "batch_records"),
        ({"batch_records": 26}, "batch_records"),
        ({"buffer_records": 5}, "buffer_records"),
        ({"flush_seconds": 0}, "flush_seconds"),
        ({"flush_seconds": float("inf")}, "flush_seconds"),
        ({"close_seconds": -1}, "close_seconds"),
        ({"max_record_bytes": 0}, "max_record_bytes"),
        ({"max_record_bytes": MAX_BATCH_BYTES}, "max_record_bytes"),
        ({"redis_url": "http://localhost"}, "ASSAY_REDIS_URL"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Client(**arguments)


def test_environment(monkeypatch: pytest.MonkeyPatch, transport: MemoryTransport) -> None:
    monkeypatch.setenv("ASSAY_SAMPLE_RATE", "0")
    monkeypatch.setenv("ASSAY_USER_ID_SALT", "pepper")
    with Client(transport=transport) as client:
        assert client.record(input="a") is None
        assert client.record(input="a", finish_reason="error", user_id="ada")
        assert sent(client, transport).user_id == hash_user_id("ada", "pepper")


@pytest.mark.parametrize("value", ["0", "false", "No", " OFF "])
def test_environment_disables(monkeypatch: pytest.MonkeyPatch, transport: MemoryTransport, value: str) -> None:
    monkeypatch.setenv("ASSAY_ENABLED", value)
    with Client(transport=transport) as client:
        assert client.record(input="a") is None
    with Client(transport=transport, enabled=True) as client:
        assert client.record(input="a"), "an argument goes before the environment"


def test_wrong_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_SAMPLE_RATE", "half")
    with pytest.raises(SettingsError, match="ASSAY_SAMPLE_RATE: 'half'"):
        Client()
    monkeypatch.setenv("ASSAY_SAMPLE_RATE", "2")
    with pytest.raises(SettingsError, match="sample_rate"):
        Client()
    monkeypatch.delenv("ASSAY_SAMPLE_RATE")
    monkeypatch.setenv("ASSAY_MAX_BATCHES", "many")
    with pytest.raises(SettingsError, match="ASSAY_MAX_BATCHES: 'many'"):
        Client()
    monkeypatch.setenv("ASSAY_MAX_BATCHES", "0")
    with pytest.raises(SettingsError, match="max_batches"):
        Client()
    monkeypatch.delenv("ASSAY_MAX_BATCHES")
    monkeypatch.setenv("ASSAY_MAX_RECORD_BYTES", "1 MB")
    with pytest.raises(SettingsError, match="ASSAY_MAX_RECORD_BYTES: '1 MB'"):
        Client()


@pytest.mark.parametrize(
    ("said", "size", "taken"), [(None, 1_100_000, 0), ("2000000", 1_100_000, 1), ("5000", 9_000, 0)]
)
def test_the_environment_says_how_large_a_record_may_be(
    monkeypatch: pytest.MonkeyPatch, transport: MemoryTransport, said: str | None, size: int, taken: int
) -> None:
    if said is not None:
        monkeypatch.setenv("ASSAY_MAX_RECORD_BYTES", said)
    with Client(transport=transport, redact=None) as client:
        client.record(input="a", output="x" * size)
        client.flush(10)
        assert client.stats().sent == taken
        assert sum(client.stats().dropped.values()) == 1 - taken
    with Client(transport=transport, redact=None, max_record_bytes=500_000) as client:
        client.record(input="a", output="x" * 400_000)
        client.flush(10)
        assert client.stats().sent == 1, "an argument goes before the environment"


def test_what_workers_take_beyond_a_batch_is_no_mistake_here(
    monkeypatch: pytest.MonkeyPatch, transport: MemoryTransport
) -> None:
    monkeypatch.setenv("ASSAY_MAX_RECORD_BYTES", str(10 * MAX_BATCH_BYTES))
    with Client(transport=transport) as client:
        assert client.record(input="a")


# interaction


def test_interaction(client: Client, transport: MemoryTransport) -> None:
    with client.interaction(input=QUESTION, contexts=("a",), cohort={"t": "x"}) as it:
        assert it.record_id is None
        it.contexts.append("b")
        it.cohort["u"] = "y"
        it.metadata["k"] = "v"
        it.output = ANSWER
    record = sent(client, transport)
    assert it.record_id == record.record_id
    assert (record.input, record.output) == (QUESTION, ANSWER)
    assert [context.text for context in record.contexts] == ["a", "b"]
    assert (record.cohort, record.metadata) == ({"t": "x", "u": "y"}, {"k": "v"})
    assert 0 <= record.latency_seconds < 60


def test_what_is_given_to_an_interaction_stays_the_callers(client: Client) -> None:
    mine = ["a"]
    with client.interaction(contexts=mine) as it:
        it.contexts.append("b")
    assert mine == ["a"]


def test_interaction_of_a_coroutine(client: Client, transport: MemoryTransport) -> None:
    async def answer() -> None:
        async with client.interaction(input=QUESTION) as it:
            await asyncio.sleep(0)
            it.output = ANSWER

    asyncio.run(answer())
    assert sent(client, transport).output == ANSWER


def test_interaction_that_raises(client: Client, transport: MemoryTransport) -> None:
    with pytest.raises(KeyError, match="the secret"), client.interaction(input=QUESTION, metadata={"k": "v"}):
        raise KeyError("the secret")
    record = sent(client, transport)
    assert record.finish_reason == "error"
    assert record.metadata == {"k": "v", "error": "KeyError"}, "the name only: the message may hold anything"
    assert record.sampling.rule == "error"


class BrokenMapping(Mapping[str, Any]):
    def __getitem__(self, _: str) -> Any:
        raise RuntimeError("no")

    def __iter__(self) -> Any:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("metadata", ["text", ["a"], 5, 0, BrokenMapping()])
def test_metadata_that_cannot_be_read_hides_no_error_of_the_app(client: Client, metadata: Any) -> None:
    @client.observe(metadata=metadata)
    def answer(question: str) -> str:
        raise KeyError("the app's own")

    def block() -> None:
        with client.interaction(input=QUESTION) as it:
            it.metadata = metadata
            raise KeyError("the app's own")

    with pytest.raises(KeyError, match="the app's own"):
        answer(QUESTION)
    with pytest.raises(KeyError, match="the app's own"):
        block()
    assert client.flush(10)
    stats = client.stats()
    assert (stats.taken, stats.sent, sum(stats.dropped.values())) == (2, 0, 2)


def test_interaction_that_is_cancelled(client: Client) -> None:
    async def answer() -> None:
        async with client.interaction(input=QUESTION):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(answer())
    assert client.stats().taken == 0


def test_own_latency_of_an_interaction(client: Client, transport: MemoryTransport) -> None:
    with client.interaction(input=QUESTION, latency_seconds=7.5):
        pass
    assert sent(client, transport).latency_seconds == 7.5


def test_interaction_with_an_unknown_field(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with client.interaction(inputt=QUESTION) as it:  # type: ignore[call-arg]
        it.output = ANSWER
    assert it.record_id
    assert "inputt is not a field" in caplog.text
    with pytest.raises(AttributeError):
        it.answer = ANSWER  # type: ignore[attr-defined]


def test_interaction_that_is_not_taken(transport: MemoryTransport) -> None:
    with Client(transport=transport, sample_rate=0.0) as client, client.interaction(input="a") as it:
        pass
    assert it.record_id is None


# observe


def test_observe_a_function(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    def answer(question: str, top: int = 3) -> str:
        """Answers."""
        return f"{question} {top}"

    assert answer("q", top=5) == "q 5"
    assert answer.__name__ == "answer"
    assert answer.__doc__ == "Answers."
    assert list(inspect.signature(answer).parameters) == ["question", "top"]
    record = sent(client, transport)
    assert (record.input, record.output) == ("q", "q 5")
    assert record.latency_seconds >= 0


def test_observe_with_names_and_fields(client: Client, transport: MemoryTransport) -> None:
    @client.observe(input_from="question", contexts_from="passages", route="/ask", cohort={"t": "x"})
    def answer(user: str, passages: list[str], question: str = "default?") -> str:
        return ANSWER

    answer("ada", ["p1", "p2"])
    record = sent(client, transport)
    assert (record.input, record.route, record.cohort) == ("default?", "/ask", {"t": "x"})
    assert [context.text for context in record.contexts] == ["p1", "p2"]


def test_one_context_where_a_list_is_wanted(client: Client, transport: MemoryTransport) -> None:
    @client.observe(contexts_from="passage")
    def answer(question: str, passage: str) -> str:
        return ANSWER

    answer(QUESTION, "passage")
    client.record(contexts="passage")
    with client.interaction() as it:
        it.contexts = "passage"  # type: ignore[assignment]
    for one in ("passage", Context(text="passage"), {"text": "passage"}):
        with client.interaction(contexts=one, tool_events={"name": "search"}) as it:
            it.contexts.append("added")
            it.tool_events.append({"name": "mail"})
    assert client.flush()
    texts = [[context.text for context in record.contexts] for record in transport.records]
    assert texts == [["passage"]] * 3 + [["passage", "added"]] * 3
    assert [event.name for event in transport.records[-1].tool_events] == ["search", "mail"]


def test_observe_a_method(client: Client, transport: MemoryTransport) -> None:
    class Assistant:
        @client.observe
        def answer(self, question: str) -> str:
            return ANSWER

    Assistant().answer(QUESTION)
    assert sent(client, transport).input == QUESTION


@pytest.mark.parametrize(("args", "expected"), [((), ""), (("a", "b"), '["a", "b"]')])
def test_observe_a_function_of_any_arguments(
    client: Client, transport: MemoryTransport, args: tuple[str, ...], expected: str
) -> None:
    @client.observe
    def answer(*questions: str) -> str:
        return ANSWER

    answer(*args)
    assert sent(client, transport).input == (expected or "[]")


def test_observe_a_function_without_parameters(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    def answer() -> dict[str, int]:
        return {"total": 1}

    assert answer() == {"total": 1}
    record = sent(client, transport)
    assert (record.input, record.output) == ("", '{"total": 1}')


def test_observe_with_capture(client: Client, transport: MemoryTransport) -> None:
    @client.observe(capture=lambda reply: {"output": reply["text"], "model": reply["model"]})
    def answer(question: str) -> dict[str, str]:
        return {"text": ANSWER, "model": "small"}

    answer(QUESTION)
    record = sent(client, transport)
    assert (record.output, record.model) == (ANSWER, "small")


def test_capture_that_raises_is_counted_and_the_call_goes_on(client: Client) -> None:
    @client.observe(capture=lambda reply: reply["text"])
    def answer(question: str) -> int:
        return 7

    assert answer(QUESTION) == 7
    assert client.stats().dropped == {"invalid": 1}


def test_observe_names_that_are_not_there(client: Client) -> None:
    for arguments in ({"input_from": "nope"}, {"contexts_from": "nope"}):
        with pytest.raises(SettingsError, match="nope"):
            client.observe(**arguments)(lambda question: question)  # type: ignore[call-overload]


def test_observe_what_raises(client: Client, transport: MemoryTransport) -> None:
    @client.observe(capture=lambda reply: {"output": "never"}, metadata={"k": "v"})
    def answer(question: str) -> str:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        answer(QUESTION)
    record = sent(client, transport)
    assert (record.finish_reason, record.output) == ("error", "")
    assert record.metadata == {"k": "v", "error": "LookupError"}


def test_observe_a_coroutine_function(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    async def answer(question: str) -> str:
        await asyncio.sleep(0)
        return ANSWER

    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(answer(QUESTION)) == ANSWER
    assert sent(client, transport).output == ANSWER


def test_observe_a_coroutine_that_fails_or_is_cancelled(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    async def answer(error: BaseException) -> str:
        raise error

    with pytest.raises(LookupError):
        asyncio.run(answer(LookupError("gone")))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(answer(asyncio.CancelledError()))
    assert sent(client, transport).finish_reason == "error"


def test_observe_a_generator(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    def answer(question: str) -> Generator[str, str, int]:
        got = yield "a"
        yield got
        return 7

    assert inspect.isgeneratorfunction(answer)
    stream = answer(QUESTION)
    assert next(stream) == "a"
    assert stream.send("b") == "b"
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == 7
    assert sent(client, transport).output == "ab"


def test_observe_a_generator_that_handles_what_is_thrown_in(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    def answer(question: str) -> Generator[str, None, None]:
        try:
            yield "a"
        except KeyError:
            yield "handled"

    stream = answer(QUESTION)
    next(stream)
    assert stream.throw(KeyError("x")) == "handled"
    assert list(stream) == []
    assert sent(client, transport).output == "ahandled"


def test_observe_a_generator_that_fails(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    def answer(question: str) -> Iterator[str]:
        yield "a"
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        list(answer(QUESTION))
    record = sent(client, transport)
    assert (record.output, record.finish_reason) == ("a", "error")


def test_observe_a_generator_that_its_reader_leaves(client: Client, transport: MemoryTransport) -> None:
    closed = []

    @client.observe
    def answer(question: str) -> Generator[str, None, None]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    stream = answer(QUESTION)
    next(stream)
    stream.close()
    assert closed == [True]
    record = sent(client, transport)
    assert (record.output, record.finish_reason) == ("a", "cancelled")


def test_chunks_that_are_not_text(client: Client, transport: MemoryTransport) -> None:
    @client.observe(capture=lambda chunks: {"output": "".join(chunk["delta"] for chunk in chunks)})
    def answer(question: str) -> Iterator[dict[str, str]]:
        yield {"delta": "a"}
        yield {"delta": "b"}

    list(answer(QUESTION))
    assert sent(client, transport).output == "ab"


def test_observe_an_asynchronous_generator(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    async def answer(question: str) -> AsyncGenerator[str, str]:
        got = yield "a"
        await asyncio.sleep(0)
        yield got

    async def read() -> list[str]:
        stream = answer(QUESTION)
        return [await anext(stream), await stream.asend("b"), *[chunk async for chunk in stream]]

    assert inspect.isasyncgenfunction(answer)
    assert asyncio.run(read()) == ["a", "b"]
    assert sent(client, transport).output == "ab"


def test_observe_an_asynchronous_generator_that_fails(client: Client, transport: MemoryTransport) -> None:
    @client.observe
    async def answer(question: str) -> AsyncGenerator[str, None]:
        yield "a"
        raise LookupError("gone")

    async def read() -> None:
        async for _ in answer(QUESTION):
            pass

    with pytest.raises(LookupError, match="gone"):
        asyncio.run(read())
    assert sent(client, transport).finish_reason == "error"


def test_observe_an_asynchronous_generator_that_its_reader_leaves(client: Client, transport: MemoryTransport) -> None:
    closed = []

    @client.observe
    async def answer(question: str) -> AsyncGenerator[str, None]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    async def read() -> None:
        stream = answer(QUESTION)
        await anext(stream)
        await stream.aclose()

    asyncio.run(read())
    assert closed == [True]
    assert sent(client, transport).finish_reason == "cancelled"


def test_observe_an_asynchronous_generator_that_handles_what_is_thrown_in(
    client: Client, transport: MemoryTransport
) -> None:
    @client.observe
    async def answer(question: str) -> AsyncGenerator[str, None]:
        try:
            yield "a"
        except KeyError:
            yield "handled"

    async def read() -> list[str]:
        stream = answer(QUESTION)
        return [await anext(stream), await stream.athrow(KeyError("x")), *[chunk async for chunk in stream]]

    assert asyncio.run(read()) == ["a", "handled"]
    assert sent(client, transport).output == "ahandled"


def test_an_observed_call_of_a_closed_client_still_works(client: Client) -> None:
    answer = client.observe(lambda question: ANSWER)
    client.close()
    assert answer(QUESTION) == ANSWER
