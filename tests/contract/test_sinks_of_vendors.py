"""What is particular to the sinks of trace stores: their forms of request, limits, look-ups and ways of refusing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from assay.errors import SettingsError, SinkError
from assay.sinks import Delivered, Rejected, Skipped, TryAgain, open_sink
from sink_server import TRACE_ID, Answer, Request, a_failure, a_json
from sink_vendors import CASES, POISON, SECRET, Service, annotation, opik_id, span

Opener = Callable[..., Service]
SCHEMAS = json.loads((Path(__file__).parent / "sink_schemas.json").read_text())
VENDORS = [name for name in SCHEMAS if name != "note"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Opener]:
    opened: list[Service] = []

    def start(name: str, **settings: Any) -> Service:
        opened.append(Service(CASES[name], tmp_path, **settings))
        return opened[-1]

    yield start
    for one in opened:
        one.sink.close()
        one.stop()


@pytest.mark.parametrize("name", VENDORS)
def test_every_request_keeps_to_the_published_form(service: Opener, name: str) -> None:
    schema = Draft202012Validator(SCHEMAS[name]["schema"], format_checker=FormatChecker())
    one = service(name)
    huge = annotation(2, explanation="x" * 50_000, cohort={"k" * 300: "v" * 3000})
    bare = annotation(
        3, explanation="", label=None, raw=None, judge_model=None, probability=None, cohort={}, passed=False
    )
    odd = annotation(4, explanation="\x00\ud800 odd", value=1 / 3, session_id="s" * 500, rubric_version="9.9+x")
    batch = [annotation(0), annotation(1, value=0.0), huge, bare, odd, annotation(5, value=1.0)]
    assert list(one.sink.deliver(batch)) == [Delivered()] * 6
    if CASES[name].failures:
        assert list(one.sink.deliver([a_failure(span_id=span(6))])) == [Delivered()]
    bodies = [request.json for request in one.requests if request.path != "/btql"]
    for body in bodies:
        schema.validate(body)
    assert bodies


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = {
        "langfuse": {"name": "one object", "value": 1},
        "datadog": {"data": {"type": "evaluation_metric", "attributes": {"metrics": [{"label": "a.b"}]}}},
        "langsmith": {"key": "k", "run_id": "no uuid", "session_id": "no uuid"},
        "braintrust": {"feedback": [{"id": "r", "scores": {"s": 1.5}}]},
        "opik": {"scores": [{"id": "no uuid", "name": "n", "source": "sdk", "value": 1}]},
        "weave": {"batch": [{"project_id": "no slash", "weave_ref": "r", "feedback_type": "wandb.x", "payload": {}}]},
        "helicone": {"scores": {"s": 0.75}},
        "latitude": {
            "value": 75,
            "passed": True,
            "feedback": "",
            "trace": {"by": "id", "id": "short"},
            "sourceId": "s",
        },
    }
    assert set(wrong) == set(VENDORS)
    for name, body in wrong.items():
        assert not Draft202012Validator(SCHEMAS[name]["schema"], format_checker=FormatChecker()).is_valid(body), name


# -- Langfuse


def old_langfuse(request: Request) -> Answer:
    """A server of 2025: one object a call."""
    if not isinstance(request.json, dict):
        return a_json(400, {"message": "Invalid request data"})
    if request.json["name"] == POISON:
        return a_json(400, {"message": "refused"})
    return a_json(200, {"id": request.json["id"]})


def test_langfuse_that_takes_one_object_a_call_is_found_out_once(service: Opener) -> None:
    one = service("langfuse")
    one.fault = old_langfuse
    assert list(one.sink.deliver([annotation(n) for n in range(3)])) == [Delivered()] * 3
    assert [type(request.json) for request in one.requests] == [list, dict, dict, dict, dict]
    assert list(one.sink.deliver([annotation(3), annotation(4)])) == [Delivered()] * 2
    assert [type(request.json) for request in one.requests[5:]] == [dict, dict]


def test_an_old_langfuse_refuses_one_alone(service: Opener) -> None:
    one = service("langfuse")
    one.fault = old_langfuse
    done = one.sink.deliver([annotation(0), annotation(1, rubric=POISON), annotation(2)])
    assert [type(delivery) for delivery in done] == [Delivered, Rejected, Delivered]


def test_a_400_of_a_langfuse_that_takes_lists_is_not_taken_for_an_old_one(service: Opener) -> None:
    one = service("langfuse")
    one.fault = lambda _: a_json(400, {"message": "refused"})
    with pytest.raises(SinkError) as caught:
        one.sink.deliver([annotation(0), annotation(1)])
    assert caught.value.suspect
    assert [type(delivery) for delivery in one.sink.deliver([annotation(0)])] == [Rejected]
    one.fault = lambda _: None
    assert list(one.sink.deliver([annotation(0), annotation(1)])) == [Delivered()] * 2
    assert isinstance(one.requests[-1].json, list)


def test_langfuse_without_a_span_scores_the_trace_and_without_a_trace_the_session(service: Opener) -> None:
    one = service("langfuse", environment="staging")
    whole = annotation(0, span_id=None)
    session = annotation(1, trace_id=None, span_id=None)
    none = annotation(2, trace_id=None, span_id=None, session_id=None)
    one.fault = lambda _: a_json(202, {"message": "Accepted"})
    assert [type(d) for d in one.sink.deliver([whole, session, none])] == [Delivered, Delivered, Skipped]
    places = [{k: s[k] for k in s if k in {"traceId", "sessionId", "observationId"}} for s in one.requests[0].json]
    assert places == [{"traceId": TRACE_ID}, {"sessionId": "session-7"}]
    assert {score["environment"] for score in one.requests[0].json} == {"staging"}


def test_langfuse_bodies_stay_under_a_megabyte(service: Opener) -> None:
    one = service("langfuse")
    batch = [annotation(n, explanation="\N{PILE OF POO}" * 10_000) for n in range(60)]  # 40 kB each
    assert list(one.sink.deliver(batch)) == [Delivered()] * 60
    assert len(one.requests) == 3
    assert max(len(request.body) for request in one.requests) < 1_000_000
    assert len(one.kept) == 60


def test_what_is_refused_in_a_later_part_of_a_batch_is_refused_alone(service: Opener) -> None:
    one = service("langfuse")
    long = "\N{PILE OF POO}" * 10_000
    batch = [annotation(n, explanation=long, rubric=POISON if n == 40 else "faithfulness") for n in range(45)]
    done = one.sink.deliver(batch)
    assert [n for n, delivery in enumerate(done) if delivery != Delivered()] == [40]
    assert isinstance(done[40], Rejected)


def test_a_later_part_that_finds_the_sink_away_is_tried_again_alone(service: Opener) -> None:
    """Datadog has no key: what went out in the first part must not go out twice."""
    one = service("langfuse")
    one.fault = lambda _: a_json(429, {}, retry_after="3") if len(one.requests) > 1 else None
    batch = [annotation(n, explanation="\N{PILE OF POO}" * 10_000) for n in range(40)]
    done = one.sink.deliver(batch)
    first = sum(delivery == Delivered() for delivery in done)
    assert 0 < first < 40
    assert {(type(d), d.after_seconds) for d in done[first:] if isinstance(d, TryAgain)} == {(TryAgain, 3.0)}
    assert len(one.kept) == first


# -- Datadog


def test_datadog_through_an_agent_sends_no_key(service: Opener, tmp_path: Path) -> None:
    one = service("datadog")
    sink = open_sink("datadog", agent_url=one.server.url)
    assert list(sink.deliver([annotation()])) == [Delivered()]
    sink.close()
    (request,) = one.requests
    assert request.path == "/evp_proxy/v2/api/intake/llm-obs/v2/eval-metric"
    assert request.headers["x-datadog-evp-subdomain"] == "api"
    assert "dd-api-key" not in request.headers


def test_datadog_needs_a_key_or_an_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="ASSAY_SINK_DATADOG_API_KEY or ASSAY_SINK_DATADOG_AGENT_URL"):
        open_sink("datadog")


def test_datadog_ids_are_decimal_and_a_verdict_is_an_assessment(service: Opener) -> None:
    one = service("datadog", ml_app="shop-llm")
    one.sink.deliver([annotation(0, passed=False)])
    (metric,) = one.requests[0].json["data"]["attributes"]["metrics"]
    assert metric["join_on"] == {"span": {"span_id": str(int(span(0), 16)), "trace_id": str(int(TRACE_ID, 16))}}
    assert metric["assessment"] == "fail"
    assert metric["ml_app"] == "shop-llm"
    assert "source:otel" in metric["tags"]


# -- LangSmith


def test_langsmith_does_not_pay_for_retention_unless_told(service: Opener) -> None:
    one = service("langsmith")
    one.sink.deliver([annotation()])
    assert one.requests[0].json["extend_trace_retention"] is False
    more = service("langsmith", extend_retention=True, workspace_id="00000000-0000-4000-8000-00000000cafe")
    more.sink.deliver([annotation()])
    assert more.requests[0].json["extend_trace_retention"] is True
    assert more.requests[0].headers["x-tenant-id"] == "00000000-0000-4000-8000-00000000cafe"


def test_langsmith_runs_and_projects_that_a_record_names(service: Opener) -> None:
    run, project = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    one = service("langsmith")
    one.sink.deliver([annotation(0, sink_refs={"langsmith_run_id": run, "langsmith_project_id": project})])
    assert (one.requests[0].json["run_id"], one.requests[0].json["session_id"]) == (run, project)


def test_langsmith_feedback_that_is_there_already_is_delivered(service: Opener) -> None:
    one = service("langsmith")
    one.fault = lambda _: a_json(409, {"detail": "exists"})
    assert list(one.sink.deliver([annotation()])) == [Delivered()]


# -- spans that are not there yet


@pytest.mark.parametrize("name", ["langsmith", "latitude", "helicone"])
def test_what_it_belongs_to_is_waited_for(service: Opener, name: str) -> None:
    one = service(name)
    one.fault = lambda _: a_json(404, {"error": "not found"}) if len(one.requests) == 1 else None
    late, there = one.sink.deliver([annotation(0), annotation(1)])
    assert isinstance(late, TryAgain)
    assert late.missing
    assert there == Delivered()


def test_braintrust_looks_rows_up_once_a_batch_and_waits_for_missing_ones(service: Opener) -> None:
    one = service("braintrust")
    one.fault = lambda r: a_json(200, {"data": [{"id": "row-a", "span_id": span(0)}]}) if r.path == "/btql" else None
    batch = [
        annotation(0),
        annotation(0, rubric="relevance"),
        annotation(1),
        annotation(2, sink_refs={"braintrust_row_id": "r"}),
    ]
    done = one.sink.deliver(batch)
    assert [type(delivery) for delivery in done] == [Delivered, Delivered, TryAgain, Delivered]
    assert isinstance(done[2], TryAgain)
    assert done[2].missing
    assert [request.path for request in one.requests].count("/btql") == 1
    query = one.requests[0].json["query"]
    assert span(0) in query
    assert span(1) in query
    assert span(2) not in query
    assert {(t.target, t.rubric) for t in one.kept} == {
        ("row-a", "faithfulness"),
        ("row-a", "relevance"),
        ("r", "faithfulness"),
    }


def test_braintrust_without_look_ups_or_comments(service: Opener) -> None:
    one = service("braintrust", find_rows=False, comments=False)
    done = one.sink.deliver([annotation(0), annotation(1, sink_refs={"braintrust_row_id": "row-b"})])
    assert [type(delivery) for delivery in done] == [Skipped, Delivered]
    (request,) = one.requests
    assert "comment" not in request.json["feedback"][0]


@pytest.mark.parametrize("rows", ["no list", [1, 2], {"id": "x"}, None])
def test_braintrust_rows_that_are_none(service: Opener, rows: Any) -> None:
    one = service("braintrust")
    one.fault = lambda request: a_json(200, {"data": rows})
    with pytest.raises(SinkError):
        one.sink.deliver([annotation()])


# -- Opik, Weave, Helicone


def test_opik_tells_traces_from_spans(service: Opener) -> None:
    one = service("opik")
    on_span = annotation(1, sink_refs={"opik_span_id": opik_id(77)})
    neither = annotation(2, sink_refs={"opik_trace_id": ""})
    assert [type(d) for d in one.sink.deliver([annotation(0), on_span, neither])] == [Delivered, Delivered, Skipped]
    assert [(r.method, r.path, r.json["scores"][0]["id"]) for r in one.requests] == [
        ("PUT", "/v1/private/traces/feedback-scores", opik_id(0)),
        ("PUT", "/v1/private/spans/feedback-scores", opik_id(77)),
    ]
    assert one.requests[0].headers["authorization"] == SECRET
    assert "kind" not in one.requests[0].json["scores"][0]


def test_opik_ids_are_of_version_7(service: Opener) -> None:
    """It refuses a whole batch for one that is not."""
    one = service("opik")
    other = annotation(1, sink_refs={"opik_trace_id": "11111111-1111-4111-8111-111111111111"})
    assert [type(delivery) for delivery in one.sink.deliver([annotation(0), other])] == [Delivered, Rejected]


def test_opik_says_how_long_to_wait_in_a_header_of_its_own(service: Opener) -> None:
    one = service("opik")
    one.fault = lambda _: a_json(429, {}, RateLimit_Reset="11")
    with pytest.raises(SinkError) as caught:
        one.sink.deliver([annotation()])
    assert caught.value.after_seconds == 11


def test_weave_names_calls_and_spans_of_the_agents_view(service: Opener) -> None:
    call = service("weave")
    call.sink.deliver([annotation(0), annotation(1, sink_refs={"weave_call_id": "0199-abc"})])
    assert [f["weave_ref"].split("/", 5)[5] for f in call.requests[0].json["batch"]] == [
        f"call/{span(0)}",
        "call/0199-abc",
    ]
    agents = service("weave", ref="agent_span")
    agents.sink.deliver([annotation(0)])
    assert agents.requests[0].json["batch"][0]["weave_ref"].endswith(f"/agent_span/{span(0)}")


def test_helicone_gets_all_criteria_of_a_request_in_one_call(service: Opener) -> None:
    one = service("helicone")
    criteria = ["faithfulness", "relevance", "safety"]
    batch = [
        annotation(n, rubric=rubric, value=value)
        for rubric, value in zip(criteria, (1.0, 0.5, 0.333), strict=True)
        for n in (0, 1)
    ]
    assert list(one.sink.deliver(batch)) == [Delivered()] * 6
    scores = {"faithfulness": 100, "relevance": 50, "safety": 33}
    assert [(request.path, request.json) for request in one.requests] == [
        ("/v1/request/request-0/score", {"scores": scores}),
        ("/v1/request/request-1/score", {"scores": scores}),
    ]


def test_helicone_that_is_away_for_one_request_is_for_all_of_its_criteria(service: Opener) -> None:
    one = service("helicone")
    one.fault = lambda r: a_json(500, {"error": "later"}) if "request-1" in r.path else None
    done = one.sink.deliver([annotation(n, rubric=rubric) for rubric in ("a", "b") for n in (0, 1)])
    assert [type(delivery) for delivery in done] == [Delivered, TryAgain, Delivered, TryAgain]


def test_an_error_in_a_helicone_answer_is_one(service: Opener) -> None:
    one = service("helicone")
    one.fault = lambda _: a_json(200, {"data": None, "error": "queue is full"})
    (done,) = one.sink.deliver([annotation()])
    assert done == TryAgain("queue is full")


# -- one call after the other


def test_a_sink_that_goes_away_half_way_keeps_what_it_has(service: Opener) -> None:
    one = service("latitude")
    one.fault = lambda _: a_json(429, {}, retry_after="5") if len(one.requests) > 2 else None
    done = one.sink.deliver([annotation(n) for n in range(5)])
    assert [type(delivery) for delivery in done] == [Delivered, Delivered, TryAgain, TryAgain, TryAgain]
    assert isinstance(done[4], TryAgain)
    assert done[4].after_seconds == 5
    assert len(one.requests) == 3
    assert len(one.kept) == 2


def test_a_500_for_one_does_not_keep_the_others_back(service: Opener) -> None:
    one = service("latitude")
    one.fault = lambda _: a_json(500, {}) if len(one.requests) == 1 else None
    done = one.sink.deliver([annotation(n) for n in range(3)])
    assert [type(delivery) for delivery in done] == [TryAgain, Delivered, Delivered]


def test_a_sink_that_is_broken_is_not_asked_for_each(service: Opener) -> None:
    one = service("latitude")
    one.fault = lambda _: a_json(500, {})
    done = one.sink.deliver([annotation(n) for n in range(20)])
    assert all(isinstance(delivery, TryAgain) for delivery in done)
    assert len(one.requests) == 3


@pytest.mark.parametrize("name", VENDORS)
def test_a_vendor_needs_its_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "opik":
        open_sink(name).close()  # one's own needs none
        return
    with pytest.raises(SettingsError, match=f"ASSAY_SINK_{name.upper()}_"):
        open_sink(name)


@pytest.mark.parametrize("field", ["project_id", "project"])
@pytest.mark.parametrize("name", ["braintrust", "langsmith", "weave", "latitude"])
def test_a_project_cannot_lead_elsewhere(name: str, field: str) -> None:
    """It stands in paths and in a query."""
    if field not in CASES[name].settings:
        pytest.skip("the other field")
    with pytest.raises(SettingsError) as caught:
        open_sink(name, **{**CASES[name].settings, field: "x') OR ('1'='1/../../evil"})
    assert field.upper() in str(caught.value)
    assert "evil" not in str(caught.value)
