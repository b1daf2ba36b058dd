"""Real Phoenix, MLflow and an independent OTLP receiver: span in, record judged, score read back where it belongs."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from assay.outbox import FIELDS, Outbox, Selection, SinkPolicy, owed_outcomes
from assay.records import Failure, Score
from assay.sinks import Delivered, Sink, TryAgain, open_sink
from assay.sinks._otlp import protobuf
from assay.store import Store
from sink_server import a_failure, an_annotation
from stores import a_record, commit
from trace_servers import TestAgent, TraceServer, a_span, otlp_json, test_agent  # noqa: F401

pytestmark = pytest.mark.integration

POLICY = SinkPolicy(retry_base_seconds=0.2, retry_max_seconds=0.5, linger_seconds=0.0, idle_seconds=0.2)


def new_ids() -> tuple[str, str]:
    return uuid.uuid4().hex, uuid.uuid4().hex[:16]


def eventually(read: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first thing that is read and is something."""
    ends = time.monotonic() + seconds
    while not (found := read()):
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.1)
    return found


@pytest.fixture
def deliver(tmp_path: Path) -> Iterator[Callable[[Sink, list], Store]]:
    """Stores evaluations and delivers what is owed, until nothing is; returns the store."""
    with Store(f"sqlite:///{tmp_path}/s.db") as made:
        made.upgrade()
    opened: list[Store] = []

    def run(sink: Sink, pairs: list, **options: Any) -> Store:
        store = Store(f"sqlite:///{tmp_path}/s.db", sinks={sink.name: owed_outcomes(sink, ("scored", "failed"))})
        opened.append(store)
        outbox = Outbox(store, [sink], select=Selection(store, FIELDS, ("none",)), policy=POLICY)
        outbox.start()
        try:
            commit(store, *pairs, **options)
            outbox.ring()
            eventually(lambda: not store.outbox(state="waiting"))
        finally:
            outbox.stop()
        return store

    yield run
    for store in opened:
        store.close()


# -- Phoenix


def phoenix_span(server: TraceServer, trace_id: str, span_id: str) -> None:
    body = protobuf(otlp_json(a_span(trace_id, span_id)))
    server.call("POST", "/v1/traces", body, content_type="application/x-protobuf")


def phoenix_annotations(server: TraceServer, *span_ids: str) -> list[dict[str, Any]]:
    query = "&".join(f"span_ids={span_id}" for span_id in span_ids)
    try:
        return server.call("GET", f"/v1/projects/default/span_annotations?{query}&limit=100")["data"]
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no span has come yet
            return []
        raise


def test_phoenix_has_the_score_on_the_right_span_once(
    phoenix: TraceServer,
    deliver: Callable[..., Store],
) -> None:
    trace_id, span_id = new_ids()
    _, other = new_ids()
    phoenix_span(phoenix, trace_id, span_id)
    phoenix_span(phoenix, trace_id, other)
    record = a_record("phoenix-1", trace_id=trace_id, span_id=span_id, cohort={"tier": "gold"}, probability=0.25)
    score = Score(value=0.25, passed=False, raw=2.0, label="poor", explanation="It answers another question.")
    store = deliver(open_sink("phoenix", url=phoenix.url), [(record, score)])
    assert store.outbox_depths()["phoenix"].writes["delivered"] == 1
    (found,) = phoenix_annotations(phoenix, span_id, other)
    assert (found["span_id"], found["name"], found["annotator_kind"]) == (span_id, "relevance", "CODE")
    assert found["result"] == {"label": "poor", "score": 0.25, "explanation": "It answers another question."}
    assert found["metadata"]["raw"] == 2.0
    assert found["metadata"]["passed"] is False
    assert found["metadata"]["rubric_hash"] == "0a1b2c3d" * 8
    assert found["metadata"]["cohort.tier"] == "gold"
    # The same twice, as after a worker that died before it could note that Phoenix has it.
    sink = open_sink("phoenix", url=phoenix.url)
    again = an_annotation(trace_id=trace_id, span_id=span_id, rubric="safety", judge="openai")
    assert sink.deliver([again]) == sink.deliver([again]) == [Delivered()]
    sink.close()
    assert sorted(one["name"] for one in phoenix_annotations(phoenix, span_id)) == ["relevance", "safety"]


def test_phoenix_gets_a_score_whose_span_comes_later_and_its_mates_do_not_wait(
    phoenix: TraceServer,
) -> None:
    (trace_id, early), (_, late) = new_ids(), new_ids()
    phoenix_span(phoenix, trace_id, early)
    sink = open_sink("phoenix", url=phoenix.url)
    batch = [an_annotation(trace_id=trace_id, span_id=span_id, evaluation_id=uuid.uuid4()) for span_id in (late, early)]
    # Phoenix takes spans in by and by.
    eventually(lambda: sink.deliver(batch[1:]) == [Delivered()])
    first = sink.deliver(batch)
    assert first == [TryAgain("404: no such span (yet)", missing=True), Delivered()]
    phoenix_span(phoenix, trace_id, late)
    eventually(lambda: sink.deliver(batch[:1]) == [Delivered()])
    sink.close()
    assert {one["span_id"] for one in phoenix_annotations(phoenix, late, early)} == {late, early}


def test_phoenix_gets_a_failure_and_then_the_verdict_in_its_place(
    phoenix: TraceServer,
    deliver: Callable[..., Store],
) -> None:
    trace_id, span_id = new_ids()
    phoenix_span(phoenix, trace_id, span_id)
    record = a_record("phoenix-2", trace_id=trace_id, span_id=span_id)
    deliver(open_sink("phoenix", url=phoenix.url), [(record, Failure(kind="timeout", message="no answer"))])
    (found,) = phoenix_annotations(phoenix, span_id)
    assert (found["result"]["label"], found["result"]["score"]) == ("failed", None)
    assert found["metadata"]["failure_kind"] == "timeout"
    deliver(open_sink("phoenix", url=phoenix.url), [(record, 0.75)], replay=True)
    (found,) = phoenix_annotations(phoenix, span_id)
    assert (found["result"]["label"], found["result"]["score"]) == ("pass", 0.75)
    assert "failure_kind" not in found["metadata"]


def test_phoenix_annotates_the_trace_of_a_record_without_a_span(phoenix: TraceServer) -> None:
    trace_id, span_id = new_ids()
    phoenix_span(phoenix, trace_id, span_id)
    sink = open_sink("phoenix", url=phoenix.url)
    annotation = an_annotation(trace_id=trace_id, span_id=None)
    eventually(lambda: sink.deliver([annotation]) == [Delivered()])
    sink.close()
    (found,) = phoenix.call("GET", f"/v1/projects/default/trace_annotations?trace_ids={trace_id}")["data"]
    assert (found["name"], found["result"]["score"]) == ("faithfulness", 0.75)


# -- MLflow


def mlflow_span(server: TraceServer, trace_id: str, span_id: str) -> None:
    server.call("POST", "/v1/traces", otlp_json(a_span(trace_id, span_id)), x_mlflow_experiment_id="0")


def mlflow_assessments(server: TraceServer, trace_id: str) -> list[dict[str, Any]]:
    info = server.call("GET", f"/api/3.0/mlflow/traces/tr-{trace_id}")["trace"]["trace_info"]
    return info.get("assessments", [])


def test_mlflow_has_the_score_on_the_right_span_once(
    mlflow: TraceServer,
    deliver: Callable[..., Store],
) -> None:
    trace_id, span_id = new_ids()
    mlflow_span(mlflow, trace_id, span_id)
    record = a_record("mlflow-1", trace_id=trace_id, span_id=span_id, probability=0.25)
    score = Score(value=0.25, passed=False, raw=2.0, label="poor", explanation="It answers another question.")
    store = deliver(open_sink("mlflow", url=mlflow.url), [(record, score)])
    assert store.outbox_depths()["mlflow"].writes == {"delivered": 1}
    (found,) = mlflow_assessments(mlflow, trace_id)
    assert (found["assessment_name"], found["span_id"], found["feedback"]["value"]) == ("relevance", span_id, 0.25)
    assert found["source"] == {"source_type": "CODE", "source_id": "lexical"}
    assert found["rationale"] == "It answers another question."
    assert found["metadata"]["rubric_hash"] == "0a1b2c3d" * 8
    assert (found["metadata"]["raw"], found["metadata"]["passed"]) == ("2.0", "false")


def test_mlflow_has_one_of_what_is_sent_twice_and_the_latest_of_what_has_changed(
    mlflow: TraceServer,
) -> None:
    trace_id, span_id = new_ids()
    mlflow_span(mlflow, trace_id, span_id)
    sink = open_sink("mlflow", url=mlflow.url)
    place = {"trace_id": trace_id, "span_id": span_id, "evaluation_id": uuid.uuid4()}
    assert sink.deliver([a_failure(**place)]) == sink.deliver([a_failure(**place)]) == [Delivered()]
    (failed,) = mlflow_assessments(mlflow, trace_id)
    assert failed["feedback"]["error"]["error_code"] == "TIMEOUT"
    assert sink.deliver([an_annotation(**place)] * 2) == [Delivered(), Delivered()]
    sink.close()
    (found,) = mlflow_assessments(mlflow, trace_id)
    assert found["feedback"]["value"] == 0.75
    assert not found["feedback"].get("error")
    assert found["rationale"] == "All but one claim is in the passages."
    assert found["metadata"]["outcome"] == "scored"


def test_mlflow_gets_a_score_whose_trace_comes_later(mlflow: TraceServer) -> None:
    (trace_id, span_id), (known, _) = new_ids(), new_ids()
    mlflow_span(mlflow, known, span_id)
    sink = open_sink("mlflow", url=mlflow.url)
    late = an_annotation(trace_id=trace_id, span_id=span_id, evaluation_id=uuid.uuid4())
    there = an_annotation(trace_id=known, span_id=span_id, evaluation_id=uuid.uuid4())
    results = sink.deliver([late, there])
    assert isinstance(results[0], TryAgain)
    assert (results[0].missing, results[1]) == (True, Delivered())
    mlflow_span(mlflow, trace_id, span_id)
    assert sink.deliver([late]) == [Delivered()]
    sink.close()
    assert len(mlflow_assessments(mlflow, trace_id)) == 1


# -- an OTLP receiver that is nobody's of ours


def otlp_attributes(item: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values()), None) for pair in item["attributes"]}


def test_an_independent_receiver_reads_the_events(
    test_agent: TestAgent,  # noqa: F811
    deliver: Callable[..., Store],
) -> None:
    trace_id, span_id = new_ids()
    pairs = [
        (a_record("otel-1", trace_id=trace_id, span_id=span_id), Score(value=0.25, passed=False, explanation="why")),
        (a_record("otel-2", trace_id=trace_id, span_id=span_id), Failure(kind="timeout", message="no answer")),
    ]
    store = deliver(open_sink("otel", url=test_agent.url), pairs)
    assert store.outbox_depths()["otel"].writes == {"delivered": 2}
    events = [
        event
        for request in test_agent.call("GET", "/test/session/logs")
        for resource in request["resource_logs"]
        for scope in resource["scope_logs"]
        for event in scope["log_records"]
    ]
    ours = {otlp_attributes(event)["assay.record_id"]: event for event in events}
    scored, failed = ours["otel-1"], ours["otel-2"]
    assert {scored["event_name"], failed["event_name"]} == {"gen_ai.evaluation.result"}
    assert otlp_attributes(scored)["gen_ai.evaluation.score.value"] == 0.25
    assert otlp_attributes(failed)["error.type"] == "timeout"
    # It decodes protobuf by opentelemetry-proto: bytes come back as base64.
    for name, given in (("trace_id", trace_id), ("span_id", span_id)):
        assert base64.b64decode(scored[name]).hex() == given
    assert (scored["flags"], scored["severity_text"], failed["severity_text"]) == (1, "INFO", "WARN")
    assert otlp_attributes(scored)["assay.passed"] is False


def test_datadogs_agent_takes_the_evaluations(
    test_agent: TestAgent,  # noqa: F811
    deliver: Callable[..., Store],
) -> None:
    trace_id, span_id = new_ids()
    pairs = [
        (a_record("dd-1", trace_id=trace_id, span_id=span_id), Score(value=0.25, passed=False, explanation="why")),
        (a_record("dd-2", trace_id=trace_id, span_id=span_id), Failure(kind="timeout", message="no answer")),
    ]
    store = deliver(open_sink("datadog", agent_url=test_agent.agent_url), pairs)
    # A failure is no score, and the metric has no field for an error: it is not owed.
    assert store.outbox_depths()["datadog"].writes == {"delivered": 1}
    with urllib.request.urlopen(f"{test_agent.agent_url}/test/session/requests", timeout=10) as answer:
        requests = json.load(answer)
    sent = [json.loads(base64.b64decode(r["body"])) for r in requests if r["url"].endswith("/v2/eval-metric")]
    (metric,) = sent[-1]["data"]["attributes"]["metrics"]
    # Datadog's ids are decimal.
    assert metric["join_on"] == {"span": {"trace_id": str(int(trace_id, 16)), "span_id": str(int(span_id, 16))}}
    assert (metric["metric_type"], metric["score_value"], metric["assessment"]) == ("score", 0.25, "fail")
    assert "source:otel" in metric["tags"]


def test_phoenix_keeps_the_evaluation_span_as_it_is_sent(phoenix: TraceServer) -> None:
    trace_id, span_id = new_ids()
    sink = open_sink("otel", url=phoenix.url, events=False)
    annotation = an_annotation(trace_id=trace_id, span_id=span_id, evaluation_id=uuid.uuid4())
    assert sink.deliver([annotation]) == sink.deliver([annotation]) == [Delivered()]
    sink.close()

    def kept() -> list[dict[str, Any]]:
        spans = phoenix.call("GET", "/v1/projects/default/spans?limit=500")["data"]
        return [span for span in spans if span["context"]["trace_id"] == annotation.evaluation_id.hex]

    (span,) = eventually(kept)
    assert (span["name"], span["span_kind"]) == ("evaluate faithfulness", "EVALUATOR")
    assert span["attributes"]["gen_ai.evaluation.score.value"] == 0.75
