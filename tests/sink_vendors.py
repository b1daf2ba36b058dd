"""Stand-ins for the services behind the sinks: each takes, keeps and refuses as its vendor does. One `Case` a sink."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.sinks import Annotation, Sink, open_sink
from sink_server import TRACE_ID, Answer, Request, SinkServer, a_json, an_annotation

PROJECT = "00000000-0000-4000-8000-00000000beef"
SECRET = "synthetic-secret-0123456789"
#: A rubric that every stand-in refuses.
POISON = "poison"


@dataclass(frozen=True)
class Taken:
    """One evaluation, as a service understood it."""

    target: str
    rubric: str
    score: float | None
    error: str | None = None
    #: what the service would find a repeat by; None: nothing
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """How to run one sink against its stand-in."""

    name: str
    #: settings besides the URL
    settings: dict[str, Any]
    #: what a request brings; nothing for one that only asks
    read: Callable[[Request], list[Taken]]
    #: the answer to what was taken
    answer: Callable[[Request], Answer]
    #: where the evaluation of `annotation(number)` stands
    target: Callable[[int], str]
    #: the answer to a request with a refused one in it
    refusal: Callable[[Request], Answer] = lambda _: a_json(400, {"error": "refused"})
    #: what the value 0.75 is there
    score: float = 0.75
    failures: bool = False
    #: a repeat leaves one
    keyed: bool = True
    #: with this name in `sink_refs`, the sink puts what it says into a URL or an id
    ref: str | None = None
    #: whether it answers in a way that a page of HTML can be told from
    knows_its_own: bool = True
    #: there is no server: it writes this setting's file
    file: str | None = None


def span(number: int) -> str:
    """Span id of `annotation(number)`."""
    return f"{number + 0x1A2B3C4D00000001:016x}"


def opik_id(number: int) -> str:
    """Its id at Opik."""
    return f"019a2f60-7a00-7{number:03x}-8f00-4d1f0a6b2c3d"


def annotation(number: int = 0, **fields: Any) -> Annotation:
    """A synthetic score of an interaction of its own, that every service can place."""
    refs = {
        "helicone_request_id": f"request-{number}",
        "opik_trace_id": opik_id(number),
        **fields.pop("sink_refs", {}),
    }
    own = {"evaluation_id": uuid.uuid5(uuid.NAMESPACE_URL, f"e-{number}"), "record_id": f"r-{number}"}
    return an_annotation(**{**own, "span_id": span(number), "sink_refs": refs, **fields})


def _otlp(request: Request) -> list[Taken]:
    taken = []
    for scoped in (s for r in request.json.get("resourceLogs", []) for s in r["scopeLogs"]):
        for event in scoped["logRecords"]:
            known = {a["key"]: next(iter(a["value"].values())) for a in event["attributes"]}
            where = event.get("spanId", "")
            name, score = known["gen_ai.evaluation.name"], known.get("gen_ai.evaluation.score.value")
            taken.append(Taken(where, name, score, known.get("error.type"), None))
    spans = [s for r in request.json.get("resourceSpans", []) for c in r["scopeSpans"] for s in c["spans"]]
    poison = any(s["name"].endswith(POISON) for s in spans)
    return [Taken("", POISON, None)] if poison else taken


def _phoenix(request: Request) -> list[Taken]:
    return [
        Taken(
            d.get("span_id") or d.get("trace_id") or d.get("session_id"),
            d["name"],
            d["result"].get("score"),
            d["metadata"].get("failure_kind"),
            f"{d.get('span_id')} {d['name']} {d['identifier']}",
        )
        for d in request.json["data"]
    ]


def _mlflow(request: Request) -> list[Taken]:
    if request.method != "POST":
        return []
    said = request.json["assessment"]
    error = said["feedback"].get("error", {}).get("error_code")
    value = said["feedback"].get("value")
    where = f"{said['trace_id']}/{said.get('span_id')}"
    return [Taken(where, said["assessment_name"], value, error, said["assessment_id"])]


def _langfuse(request: Request) -> list[Taken]:
    assert isinstance(request.json, list)
    taken = []
    for said in request.json:
        assert ("traceId" in said) != ("sessionId" in said)
        where = said["sessionId"] if "sessionId" in said else f"{said['traceId']}/{said['observationId']}"
        taken.append(Taken(where, said["name"], said["value"], None, said["id"]))
    return taken


def _datadog(request: Request) -> list[Taken]:
    metrics = request.json["data"]["attributes"]["metrics"]
    return [Taken(m["join_on"]["span"]["span_id"], m["label"], m["score_value"]) for m in metrics]


def _langsmith(request: Request) -> list[Taken]:
    said = request.json
    error = said["comment"].partition(":")[0] if said.get("error") else None
    return [Taken(said["run_id"], said["key"], said.get("score"), error, said["id"])]


def _braintrust(request: Request) -> list[Taken]:
    feedback = request.json.get("feedback", [])
    return [Taken(f["id"], n, v, None, f"{f['id']} {n}") for f in feedback for n, v in f["scores"].items()]


def _braintrust_answer(request: Request) -> Answer:
    if request.path != "/btql":
        return a_json(200, {"status": "success"})
    asked = re.findall(r"'([0-9a-f]{16})'", request.json["query"])
    return a_json(200, {"data": [{"id": f"row-of-{one}", "span_id": one} for one in asked]})


def _opik(request: Request) -> list[Taken]:
    return [Taken(s["id"], s["name"], s["value"], None, f"{s['id']} {s['name']}") for s in request.json["scores"]]


def _weave(request: Request) -> list[Taken]:
    taken = []
    for said in request.json["batch"]:
        rubric = said["feedback_type"].removeprefix("assay.")
        score = said.get("scorer_ratings", {}).get(rubric)
        taken.append(Taken(said["weave_ref"], rubric, score, said["payload"].get("error"), said["id"]))
    return taken


def _weave_answer(request: Request) -> Answer:
    row = {"created_at": "2026-03-01T12:00:00Z", "payload": {}, "wb_user_id": "u"}
    return a_json(200, {"res": [{"id": said["id"], **row} for said in request.json["batch"]]})


def _helicone(request: Request) -> list[Taken]:
    found = re.fullmatch(r"/v1/request/([A-Za-z0-9_-]+)/score", request.path)
    assert found, request.path
    return [Taken(found[1], name, value, None, f"{found[1]} {name}") for name, value in request.json["scores"].items()]


def _latitude(request: Request) -> list[Taken]:
    said = request.json
    rubric = said["sourceId"].split("/")[1]
    # A trace is all that it can name, so several of one trace are told by the record.
    return [Taken(said["trace"]["id"], rubric, said["value"])]


def _webhook(request: Request) -> list[Taken]:
    return [_document(one) for one in request.json["evaluations"]]


def _document(one: dict[str, Any]) -> Taken:
    return Taken(one.get("span_id", ""), one["rubric"], one.get("value"), one.get("failure_kind"), one["evaluation_id"])


def _no_server(request: Request) -> Any:
    raise AssertionError(f"jsonl called {request.path}")


#: A new sink: one more here. `test_every_sink_is_here` says so.
CASES = {
    case.name: case
    for case in (
        Case(
            name="otel",
            # Says the same as its default, protobuf (tests/unit/test_sinks.py), and can be read here.
            settings={"headers": f"authorization=Bearer {SECRET}", "encoding": "json"},
            read=_otlp,
            answer=lambda _: a_json(200, {"partialSuccess": {}}),
            target=span,
            failures=True,
            keyed=False,
            knows_its_own=False,
        ),
        Case(
            name="phoenix",
            settings={"api_key": SECRET},
            read=_phoenix,
            answer=lambda request: a_json(200, {"data": [{"id": "U3Bhbg=="} for _ in request.json["data"]]}),
            refusal=lambda _: a_json(422, {"detail": "refused"}),
            target=span,
            failures=True,
            knows_its_own=False,
        ),
        Case(
            name="mlflow",
            settings={"token": SECRET},
            read=_mlflow,
            answer=lambda request: a_json(
                200, {"assessment": {"assessment_id": request.json["assessment"]["assessment_id"]}}
            ),
            target=lambda n: f"tr-{TRACE_ID}/{span(n)}",
            failures=True,
            ref="mlflow_trace_id",
            knows_its_own=False,
        ),
        Case(
            name="langfuse",
            settings={"public_key": "pk-synthetic", "secret_key": SECRET},
            read=_langfuse,
            answer=lambda _: a_json(202, {"message": "Accepted"}),
            refusal=lambda request: a_json(
                207, {"accepted": len(request.json) - 1, "rejected": 1, "errors": [{"message": "refused"}]}
            ),
            target=lambda n: f"{TRACE_ID}/{span(n)}",
        ),
        Case(
            name="datadog",
            settings={"api_key": SECRET},
            read=_datadog,
            answer=lambda _: a_json(202, {}),
            target=lambda n: str(int(span(n), 16)),
            keyed=False,
        ),
        Case(
            name="langsmith",
            settings={"api_key": SECRET, "project_id": PROJECT},
            read=_langsmith,
            answer=lambda request: a_json(200, {"id": request.json["id"]}),
            refusal=lambda _: a_json(422, {"detail": [{"msg": "refused"}]}),
            target=lambda n: str(uuid.UUID(int=int(span(n), 16))),
            failures=True,
            ref="langsmith_run_id",
        ),
        Case(
            name="braintrust",
            settings={"api_key": SECRET, "project_id": PROJECT},
            read=_braintrust,
            answer=_braintrust_answer,
            target=lambda n: f"row-of-{span(n)}",
            ref="braintrust_row_id",
        ),
        Case(
            name="opik",
            settings={"api_key": SECRET, "workspace": "team", "project": "helpdesk"},
            read=_opik,
            answer=lambda _: (204, {}, b""),
            target=opik_id,
            ref="opik_trace_id",
        ),
        Case(
            name="weave",
            settings={"api_key": SECRET, "project": "team/helpdesk"},
            read=_weave,
            answer=_weave_answer,
            target=lambda n: f"weave:///team/helpdesk/call/{span(n)}",
            failures=True,
            ref="weave_call_id",
        ),
        Case(
            name="helicone",
            settings={"api_key": SECRET},
            read=_helicone,
            answer=lambda _: a_json(200, {"data": None, "error": None}),
            target=lambda n: f"request-{n}",
            score=75,
            ref="helicone_request_id",
        ),
        Case(
            name="latitude",
            settings={"api_key": SECRET, "project": "helpdesk"},
            read=_latitude,
            answer=lambda request: a_json(201, {"id": "score-1", **request.json}),
            target=lambda _: TRACE_ID,
            keyed=False,
        ),
        Case(
            name="webhook",
            settings={"secret": SECRET},
            read=_webhook,
            answer=lambda _: a_json(200, {}),
            target=span,
            failures=True,
            knows_its_own=False,  # every 2xx means taken, which is its contract
        ),
        Case(
            name="jsonl",
            settings={},
            read=_no_server,
            answer=_no_server,
            target=span,
            failures=True,
            file="path",
            keyed=False,
        ),
    )
}


class Service:
    """A sink, and the stand-in for what is behind it. `fault`: what it answers instead, to a request."""

    def __init__(self, case: Case, directory: Path, **settings: Any) -> None:
        self.case = case
        self.fault: Callable[[Request], Answer | None] = lambda _: None
        self._kept: list[Taken] = []
        self._assessments: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.server = SinkServer(self._answer)
        self._file = directory / "lines.jsonl"
        where = {case.file: self._file} if case.file else {"url": self.server.url}
        try:
            self.sink: Sink = open_sink(case.name, **{"timeout_seconds": 5.0, **where, **case.settings, **settings})
        except Exception:
            self.server.__enter__().__exit__()
            raise
        self.server.__enter__()
        self._running = True

    def stop(self) -> None:
        """Nothing listens at its port any more."""
        if self._running:
            self._running = False
            self.server.__exit__()

    @property
    def requests(self) -> list[Request]:
        return self.server.requests

    @property
    def kept(self) -> list[Taken]:
        """What it has, a repeat by its key once."""
        if self.case.file:
            lines = self._file.read_bytes().splitlines() if self._file.exists() else []
            return [_document(json.loads(line)) for line in lines]
        with self._lock:
            keyed = {taken.key or object(): taken for taken in self._kept}
        return list(keyed.values())

    def _answer(self, request: Request) -> Answer:
        trouble = self.fault(request)
        if trouble is not None:
            return trouble
        if self.case.name == "mlflow" and (again := self._mlflow_again(request)):
            return again
        taken = self.case.read(request)
        if any(one.rubric == POISON for one in taken):
            return self.case.refusal(request)
        with self._lock:
            self._kept += taken
        return self.case.answer(request)

    def _mlflow_again(self, request: Request) -> Answer | None:
        """A second creation breaks a constraint; what is there can be read."""
        if request.method == "GET":
            known = self._assessments.get(request.path.rpartition("/")[2])
            return a_json(200, {"assessment": known}) if known else a_json(404, {})
        said = request.json["assessment"]
        if said["assessment_id"] in self._assessments:
            return a_json(500, {"error_code": "INTERNAL_ERROR", "message": "constraint violation"})
        if said["assessment_name"] != POISON:
            self._assessments[said["assessment_id"]] = said
        return None
