"""The sinks of OpenTelemetry, webhooks and JSON lines, and what all sinks have in common."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from assay import otlp, sinks
from assay.errors import SettingsError, SinkError
from assay.sinks import Delivered, Rejected, Sink, Skipped, provenance
from assay.sinks._document import document
from assay.sinks.webhook import sign
from sink_server import SPAN_ID, TRACE_ID, SinkServer, a_failure, a_json, an_annotation

HOWTO = Path(__file__).parents[2] / "docs/howto/sinks.md"
Opener = Callable[..., Sink]
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def server() -> Iterator[SinkServer]:
    with SinkServer() as running:
        yield running


@pytest.fixture
def open_sink() -> Iterator[Callable[..., Sink]]:
    """`assay.sinks.open_sink`; what it opens is closed at the end."""
    opened: list[Sink] = []

    def open_(name: str, **overrides: Any) -> Sink:
        opened.append(sinks.open_sink(name, **overrides))
        return opened[-1]

    yield open_
    for sink in opened:
        sink.close()


# -- the registry


def test_every_file_is_a_sink_with_settings_of_its_own_prefix() -> None:
    assert {"otel", "phoenix", "mlflow", "webhook", "jsonl"} <= set(sinks.sink_names())
    for name in sinks.sink_names():
        settings = sinks.settings_class(name)
        assert settings.model_config["env_prefix"] == f"ASSAY_SINK_{name.upper()}_"
        assert settings.about, name
        assert all(field.description for field in settings.model_fields.values()), name


def test_a_sink_that_there_is_not(open_sink: Opener) -> None:
    with pytest.raises(SettingsError, match=r"ASSAY_SINKS: 'phoenixx' is not a sink: choose from .*phoenix"):
        open_sink("phoenixx")
    with pytest.raises(SettingsError, match="is not a sink"):
        open_sink("_http")


def test_a_setting_that_is_missing_or_wrong_is_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, open_sink: Opener
) -> None:
    monkeypatch.setenv("ASSAY_SINK_WEBHOOK_SECRET", "too-short-secret"[:9])
    with pytest.raises(SettingsError) as caught:
        open_sink("webhook")
    assert str(caught.value) == "ASSAY_SINK_WEBHOOK_URL: is not set (and 1 more)"
    monkeypatch.setenv("ASSAY_SINK_WEBHOOK_URL", "http://localhost/")
    with pytest.raises(SettingsError, match=r"^ASSAY_SINK_WEBHOOK_SECRET: must have 16 characters") as caught:
        open_sink("webhook")
    assert "too-short" not in str(caught.value)
    monkeypatch.setenv("ASSAY_SINK_WEBHOOK_SECRET", "whsec_no base64 at all")
    with pytest.raises(SettingsError, match="must be base64"):
        open_sink("webhook")


def test_settings_come_from_a_directory_of_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_sink: Opener
) -> None:
    (tmp_path / "assay_sink_webhook_secret").write_text(SECRET + "\n")
    monkeypatch.setenv("ASSAY_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("ASSAY_SINK_WEBHOOK_URL", "http://localhost/")
    open_sink("webhook").close()


def test_where_a_score_comes_from_without_what_is_not_known() -> None:
    known = provenance(an_annotation(label=None, cohort={"tier": "gold", "a": "b"}))
    assert known["rubric_hash"] == "0a1b2c3d" * 8
    assert (known["raw"], known["passed"], known["calibration_state"]) == (4.0, True, "active")
    assert (known["cohort.tier"], known["cohort.a"]) == ("gold", "b")
    assert "label" not in known
    assert "failure_kind" not in known
    assert not {"explanation", "trace_id", "span_id", "input", "value"} & set(known)


def test_a_word_for_the_verdict() -> None:
    assert an_annotation().verdict == "mostly"
    assert an_annotation(label=None).verdict == "pass"
    assert an_annotation(label=None, passed=False).verdict == "fail"
    assert a_failure().verdict is None


# -- JSON lines


def test_lines_are_appended_to_a_file_for_the_owner_alone(tmp_path: Path, open_sink: Opener) -> None:
    path = tmp_path / "scores.jsonl"
    sink = open_sink("jsonl", path=path)
    assert sink.deliver([an_annotation(), a_failure()]) == [Delivered(), Delivered()]
    path.rename(tmp_path / "rotated")
    sink.deliver([an_annotation(explanation="two\nlines, NUL \x00, half \ud800")])
    sink.close()
    first, second = map(json.loads, (tmp_path / "rotated").read_text().splitlines())
    assert (first["outcome"], first["trace_id"], first["span_id"]) == ("scored", TRACE_ID, SPAN_ID)
    assert (second["outcome"], second["failure_kind"]) == ("failed", "timeout")
    assert "value" not in second
    (third,) = map(json.loads, path.read_text().splitlines())
    assert third["explanation"] == "two\nlines, NUL \x00, half ?"
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_of_threads_do_not_mix(tmp_path: Path, open_sink: Opener) -> None:
    path = tmp_path / "scores.jsonl"
    many = [open_sink("jsonl", path=path) for _ in range(4)]
    batch = [an_annotation(explanation="x" * 5000)] * 10
    threads = [threading.Thread(target=sink.deliver, args=(batch,)) for sink in many for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    assert len(lines) == 200
    assert {json.loads(line)["explanation"] for line in lines} == {"x" * 5000}


def test_lines_go_to_standard_output(capfd: pytest.CaptureFixture[str], open_sink: Opener) -> None:
    open_sink("jsonl").deliver([an_annotation()])
    assert json.loads(capfd.readouterr().out)["event"] == "evaluation"


def test_a_file_that_cannot_be_written_is_a_sink_that_is_away(tmp_path: Path, open_sink: Opener) -> None:
    sink = open_sink("jsonl", path=tmp_path / "none" / "scores.jsonl")
    with pytest.raises(SinkError, match=r"jsonl: .*scores\.jsonl: No such file"):
        sink.deliver([an_annotation()])


def test_the_document_has_times_in_utc_and_no_nothings() -> None:
    whole = document(an_annotation(input="in", output="out"))
    assert (whole["timestamp"], whole["evaluated_at"]) == ("2026-03-01T12:00:00.250000Z", "2026-03-01T12:00:09.123456Z")
    assert (whole["version"], whole["input"], whole["output"]) == (1, "in", "out")
    assert None not in whole.values()
    assert not {"input", "output", "message", "sink_refs"} & set(document(an_annotation()))


# -- webhooks


def a_webhook(open_sink: Opener, server: SinkServer, **fields: Any) -> Sink:
    return open_sink("webhook", url=f"{server.url}/hook", secret=SECRET, **fields)


def test_a_webhook_is_signed_and_a_repeat_has_the_same_id(server: SinkServer, open_sink: Opener) -> None:
    sink = a_webhook(open_sink, server)
    batch = [an_annotation(), a_failure()]
    assert sink.deliver(batch) == [Delivered(), Delivered()]
    sink.deliver(batch)
    sink.deliver(batch[:1])
    first, again, other = server.requests
    assert first.path == "/hook"
    assert first.json == {"evaluations": [document(annotation) for annotation in batch]}
    assert first.headers["webhook-id"] == again.headers["webhook-id"] != other.headers["webhook-id"]
    assert abs(int(first.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60


def test_the_signature_is_that_of_standard_webhooks() -> None:
    # The example of the specification's own test suites (standardwebhooks, libraries/python/tests).
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def verify() -> Any:
    """The function that the how-to tells people to use, as it stands there."""
    text = HOWTO.read_text()
    (code,) = re.findall(r"```python\n(import base64.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # the documented snippet itself
    return found["verified"]


def test_the_documented_check_takes_what_is_sent_and_nothing_else(server: SinkServer, open_sink: Opener) -> None:
    verified = verify()
    sink = a_webhook(open_sink, server)
    sink.deliver([an_annotation()])
    (request,) = server.requests
    sent_at = int(request.headers["webhook-timestamp"])
    assert verified(request.headers, request.body, SECRET, now=sent_at)
    assert verified(request.headers, request.body, SECRET, now=sent_at + 299)
    assert not verified(request.headers, request.body, SECRET, now=sent_at + 301), "played again later"
    assert not verified(request.headers, request.body, SECRET, now=sent_at - 301)
    assert not verified(request.headers, request.body + b" ", SECRET, now=sent_at)
    assert not verified(request.headers, request.body, SECRET[:-8] + "AAAAAAA=", now=sent_at)
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        without = {key: value for key, value in request.headers.items() if key != name}
        assert not verified(without, request.body, SECRET, now=sent_at)
        assert not verified({**request.headers, name: "1"}, request.body, SECRET, now=sent_at)
    # While a secret is changed, two signatures may stand there.
    both = {**request.headers, "webhook-signature": f"v1,AAAA {request.headers['webhook-signature']}"}
    assert verified(both, request.body, SECRET, now=sent_at)


def test_a_webhook_that_refuses(server: SinkServer, open_sink: Opener) -> None:
    sink = a_webhook(open_sink, server)
    server.answer = lambda _: (422, {}, b"no such rubric")
    assert sink.deliver([an_annotation()]) == [Rejected("422: no such rubric")]
    with pytest.raises(SinkError, match="refuses a batch of 2") as caught:
        sink.deliver([an_annotation()] * 2)
    assert caught.value.suspect


# -- OpenTelemetry


def attributes(item: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in item["attributes"]}


def sent(server: SinkServer, path: str) -> list[dict[str, Any]]:
    """The log records or spans of the latest request to a path."""
    request = [request for request in server.requests if request.path == path][-1]
    assert request.headers["content-type"] == "application/json"
    several, item = ("Logs", "logRecords") if path.endswith("logs") else ("Spans", "spans")
    (resource,) = request.json[f"resource{several}"]
    assert attributes(resource["resource"])["service.name"] == "assay"
    (scope,) = resource[f"scope{several}"]
    assert scope["scope"]["name"] == "assay.sinks.otel"
    return scope[item]


def test_an_event_is_parented_to_the_judged_span(server: SinkServer, open_sink: Opener) -> None:
    sink = open_sink("otel", url=server.url, encoding="json")
    assert sink.deliver([an_annotation(session_id=None, sink_refs={"response_id": "resp-1"})]) == [Delivered()]
    (event,) = sent(server, "/v1/logs")
    assert (event["eventName"], event["traceId"], event["spanId"]) == ("gen_ai.evaluation.result", TRACE_ID, SPAN_ID)
    assert (event["flags"], event["severityNumber"]) == (1, 9)
    assert event["timeUnixNano"] == event["observedTimeUnixNano"] == "1772366409123456000"
    values = {pair["key"]: pair["value"] for pair in event["attributes"]}
    assert values["gen_ai.evaluation.name"] == {"stringValue": "faithfulness"}
    assert values["gen_ai.evaluation.score.value"] == {"doubleValue": 0.75}
    assert values["gen_ai.evaluation.score.label"] == {"stringValue": "mostly"}
    assert values["gen_ai.evaluation.explanation"] == {"stringValue": "All but one claim is in the passages."}
    assert values["gen_ai.response.id"] == {"stringValue": "resp-1"}
    assert values["assay.passed"] == {"boolValue": True}
    assert values["assay.probability"] == {"doubleValue": 0.25}
    assert values["assay.rubric_hash"] == {"stringValue": "0a1b2c3d" * 8}
    assert not {"error.type", "gen_ai.conversation.id", "assay.input", "assay.output"} & set(values)


def test_the_evaluation_span_links_to_the_judged_one_and_is_the_same_each_time(
    server: SinkServer, open_sink: Opener
) -> None:
    sink = open_sink("otel", url=server.url, encoding="json")
    sink.deliver([an_annotation()])
    (span,) = sent(server, "/v1/traces")
    sink.deliver([an_annotation()])
    assert sent(server, "/v1/traces") == [span]
    assert [request.path for request in server.requests[:2]] == ["/v1/traces", "/v1/logs"], "what repeats best first"
    assert span["traceId"] == an_annotation().evaluation_id.hex
    assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
    assert span["links"] == [{"traceId": TRACE_ID, "spanId": SPAN_ID, "flags": 1}]
    assert "parentSpanId" not in span
    shown = attributes(span)
    assert shown["openinference.span.kind"] == "EVALUATOR"
    assert shown["evaluations.0.evaluation.name"] == "faithfulness"
    assert shown["evaluations.0.evaluation.score"] == 0.75
    assert shown["gen_ai.evaluation.name"] == "faithfulness"
    assert "gen_ai.operation.name" not in shown, "or it would be taken for a call of a model, and judged"


def test_a_child_stands_in_the_judged_trace(server: SinkServer, open_sink: Opener) -> None:
    open_sink("otel", url=server.url, encoding="json", spans="child").deliver([an_annotation()])
    (span,) = sent(server, "/v1/traces")
    assert (span["traceId"], span["parentSpanId"]) == (TRACE_ID, SPAN_ID)
    assert len(span["links"]) == 1


def test_a_failure_goes_out_as_an_error(server: SinkServer, open_sink: Opener) -> None:
    open_sink("otel", url=server.url, encoding="json").deliver([a_failure()])
    (event,), (span,) = sent(server, "/v1/logs"), sent(server, "/v1/traces")
    assert attributes(event)["error.type"] == "timeout"
    assert "gen_ai.evaluation.score.value" not in attributes(event)
    assert event["severityNumber"] == 13
    assert span["status"] == {"code": 2, "message": "no answer within 60 s"}


def test_a_record_without_a_span_has_an_event_alone(server: SinkServer, open_sink: Opener) -> None:
    sink = open_sink("otel", url=server.url, encoding="json")
    assert sink.deliver([an_annotation(span_id=None), an_annotation(trace_id=None, span_id=None)]) == [Delivered()] * 2
    with_trace, without = sent(server, "/v1/logs")
    assert with_trace["traceId"] == TRACE_ID
    assert "spanId" not in with_trace
    assert not {"traceId", "spanId", "flags"} & set(without)
    assert [request.path for request in server.requests] == ["/v1/logs"]


def test_traces_alone_or_events_alone(server: SinkServer, open_sink: Opener) -> None:
    open_sink("otel", url=server.url, encoding="json", spans="none").deliver([an_annotation()])
    assert [request.path for request in server.requests] == ["/v1/logs"]
    results = open_sink("otel", url=server.url, encoding="json", events=False).deliver(
        [an_annotation(), an_annotation(span_id=None)]
    )
    assert [type(result) for result in results] == [Delivered, Skipped]
    assert [request.path for request in server.requests] == ["/v1/logs", "/v1/traces"]


@pytest.mark.parametrize("partial", [{}, {"partialSuccess": {}}, {"partialSuccess": None}, {"partialSuccess": 3}, []])
def test_an_answer_that_refuses_none(server: SinkServer, partial: Any, open_sink: Opener) -> None:
    server.answer = lambda _: a_json(200, partial)
    assert open_sink("otel", url=server.url, encoding="json").deliver([an_annotation()]) == [Delivered()]


def test_a_receiver_that_refuses_some_is_not_sent_them_again(server: SinkServer, open_sink: Opener) -> None:
    refuses = {"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "too old"}}
    server.answer = lambda request: a_json(200, refuses if request.path == "/v1/logs" else {})
    results = open_sink("otel", url=server.url, encoding="json").deliver([an_annotation()] * 2)
    assert results == [Rejected("1 of a batch of 2 refused: too old")] * 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", [Delivered()] * 2),
        (b"\x0a\x00", [Delivered()] * 2),
        (b"\x0a\x02\x08\x00", [Delivered()] * 2),
        (b"\x0a\x0b\x08\x01\x12\x07too old", [Rejected("1 of a batch of 2 refused: too old")] * 2),
        (b"\x0a\x03\x08\xac\x02", [Rejected("300 of a batch of 2 refused: no reason given")] * 2),
        (b"not protobuf at all", [Delivered()] * 2),
        (b"\xff" * 20, [Delivered()] * 2),
        (b"\x0a\x7f\x08", [Delivered()] * 2),
    ],
)
def test_an_answer_in_protobuf(server: SinkServer, open_sink: Opener, body: bytes, expected: list) -> None:
    server.answer = lambda _: (200, {"content-type": "application/x-protobuf"}, body)
    assert open_sink("otel", url=server.url, spans="none").deliver([an_annotation()] * 2) == expected
    assert server.requests[0].headers["content-type"] == "application/x-protobuf"


def test_a_receiver_without_logs_says_which_setting_mends_it(server: SinkServer, open_sink: Opener) -> None:
    server.answer = lambda request: (404 if request.path == "/v1/logs" else 200, {}, b"")
    with pytest.raises(SinkError, match="no /v1/logs: check the URL, or set ASSAY_SINK_OTEL_EVENTS=false"):
        open_sink("otel", url=server.url, encoding="json").deliver([an_annotation()])


def test_headers_of_a_receiver_that_asks_for_them(server: SinkServer, open_sink: Opener) -> None:
    open_sink("otel", url=server.url, headers="Authorization=Bearer a=b, x-tenant=7").deliver([an_annotation()])
    assert server.requests[0].headers["authorization"] == "Bearer a=b"
    assert server.requests[0].headers["x-tenant"] == "7"
    with pytest.raises(SettingsError, match="ASSAY_SINK_OTEL_HEADERS: must be name=value") as caught:
        open_sink("otel", url=server.url, encoding="json", headers="very-secret")
    assert "very-secret" not in str(caught.value)


def test_protobuf_says_what_the_json_says(server: SinkServer, open_sink: Opener) -> None:
    batch = [an_annotation(explanation="é \ud800 " + "x" * 300), a_failure(), an_annotation(passed=False, value=0.0)]
    for encoding in ("json", "protobuf"):
        open_sink("otel", url=server.url, encoding=encoding, spans="child", events=False).deliver(batch)
    as_json, as_protobuf = (request.body for request in server.requests)
    # The receiver of `assay collect`, which was written apart from what sends.
    told, read = otlp.read_traces_json(as_json), otlp.read_traces(as_protobuf)
    assert len(read.spans) == 3
    assert read == told


def test_a_line_behind_a_torn_one_is_not_lost_in_it(tmp_path: Path, open_sink: Opener) -> None:
    """A full disk leaves half a line; what is delivered after it must stand on a line of its own."""
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"event": "evalu')
    sink = open_sink("jsonl", path=path)
    sink.deliver([an_annotation()])
    sink.deliver([an_annotation()])
    torn, first, second = path.read_text().splitlines()
    assert torn == '{"event": "evalu'
    assert json.loads(first)["event"] == json.loads(second)["event"] == "evaluation"


def test_a_pipe_without_a_reader_is_a_sink_that_is_away(tmp_path: Path, open_sink: Opener) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(SinkError, match="jsonl"):
        open_sink("jsonl", path=path).deliver([an_annotation()])
