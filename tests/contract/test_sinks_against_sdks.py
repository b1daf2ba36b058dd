"""What our sinks send is, field by field, what the vendors' own SDKs send for the same evaluation.

The captures are data, made by `tests/contract/sdk_captures/make.py` (see there). Every difference is listed here with
its reason: one that is not listed fails, and so does one that is listed and is none any more.
"""

from __future__ import annotations

import json
import uuid
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from assay.sinks import Annotation, Delivered, provenance
from sink_server import Request
from sink_vendors import CASES, PROJECT, Service

HERE = Path(__file__).parent / "sdk_captures"
SAMPLE = json.loads((HERE / "sample.json").read_text())
KEY = "key-synthetic"

#: Settings that say the same as make.py tells the SDKs.
SETTINGS: dict[str, dict[str, Any]] = {
    "langfuse": {"public_key": "pk-synthetic", "secret_key": "sk-synthetic"},
    "datadog": {"api_key": KEY},
    "langsmith": {"api_key": KEY, "project_id": PROJECT},
    "braintrust": {"api_key": KEY, "project_id": PROJECT},
    "opik": {"api_key": KEY, "workspace": "team", "project": "helpdesk"},
    "weave": {"api_key": KEY, "project": "team/helpdesk"},
    "latitude": {"api_key": KEY, "project": "helpdesk"},
}

#: Field: why it is not the same. `body.x` is a field of the body, `[0]` the first of a list.
DIFFERENT: dict[str, dict[str, str]] = {
    "langfuse": {
        "body[0].timestamp": "the same moment, written with an offset and milliseconds, which the API takes too",
    },
    "datadog": {
        "body.data.attributes.metrics[0].tags[0]": "the SDK's own version; we are not that SDK",
        "body.data.attributes.metrics[0].tags[1]": "moved up, because the SDK's version is not there",
        "body.data.attributes.metrics[0].tags[2]": "moved up",
        "body.data.attributes.metrics[0].tags[3]": "moved up",
    },
    "langsmith": {
        "body.created_at": "ours is when the evaluation was stored, the same at each repeat; the SDK's is now",
        "body.modified_at": "as created_at",
    },
    "opik": {
        "path": "the same path; the SDK was given a host that ends in /api, which is our default URL",
        "body.scores[0].reason": "what the score comes from stands behind it: a feedback score has no metadata",
    },
    "weave": {
        **{
            f"body.batch[0].{name}": "the SDK spells out the server's default"
            for name in (
                "scorer_tags",
                "scorer_tag_reasons",
                "scorer_tag_confidences",
                "scorer_rating_confidences",
                "scorer_trace_id",
                "span_agent_name",
                "span_agent_version",
                "span_conversation_id",
                "span_status_code",
            )
        },
    },
    "latitude": {},
}


def sample() -> Annotation:
    facts = dict(SAMPLE["annotation"])
    for name in ("timestamp", "evaluated_at"):
        facts[name] = datetime.fromisoformat(facts[name])
    return Annotation(**{**facts, "evaluation_id": uuid.UUID(facts["evaluation_id"])})


def flat(value: Any, path: str = "body") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from flat(part, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for number, part in enumerate(value):
            yield from flat(part, f"{path}[{number}]")
    else:
        yield path, value


def fields(method: str, path: str, headers: dict[str, str], body: Any) -> dict[str, Any]:
    shown = dict(headers)
    if shown.get("authorization", "").startswith("Basic ") and not shown["authorization"].startswith("Basic of "):
        shown["authorization"] = "Basic of " + b64decode(shown["authorization"][6:]).decode()
    return {"method": method, "path": path, **{f"header.{k}": v for k, v in shown.items()}, **dict(flat(body))}


def captured(name: str, path_part: str = "") -> dict[str, Any]:
    found = json.loads((HERE / f"{name}.json").read_text())
    (request,) = [one for one in found["requests"] if path_part in one["path"]]
    return fields(request["method"], request["path"], request["headers"], request["body"])


def ours(name: str, directory: Path) -> dict[str, Any]:
    service = Service(CASES[name], directory, **SETTINGS[name])
    try:
        assert list(service.sink.deliver([sample()])) == [Delivered()]
    finally:
        service.sink.close()
        service.stop()
    (request,) = [one for one in service.requests if one.path != "/btql"]
    return fields(request.method, request.path, _kept_headers(request), request.json)


def _kept_headers(request: Request) -> dict[str, str]:
    kept = {"authorization", "x-api-key", "dd-api-key", "comet-workspace", "content-type", "x-datadog-evp-subdomain"}
    return {name: value for name, value in request.headers.items() if name in kept}


def test_the_sdks_were_told_what_our_sinks_know() -> None:
    assert provenance(sample()) == SAMPLE["provenance"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_request_is_that_of_the_sdk(name: str, tmp_path: Path) -> None:
    theirs, mine = captured(name, "batch" if name == "weave" else ""), ours(name, tmp_path)
    differing = {field for field in theirs.keys() | mine.keys() if theirs.get(field, ...) != mine.get(field, ...)}
    assert differing == set(DIFFERENT[name]), {f: (theirs.get(f, ...), mine.get(f, ...)) for f in sorted(differing)}


def test_a_langfuse_time_is_the_same_moment(tmp_path: Path) -> None:
    field = "body[0].timestamp"
    theirs, mine = captured("langfuse")[field], ours("langfuse", tmp_path)[field]
    assert datetime.fromisoformat(theirs) == datetime.fromisoformat(mine)


def test_datadog_has_the_same_tags_but_for_the_version_of_the_sdk(tmp_path: Path) -> None:
    def tags(found: dict[str, Any]) -> list[str]:
        return [value for field, value in found.items() if ".tags[" in field]

    theirs = [tag for tag in tags(captured("datadog")) if not tag.startswith("ddtrace.version:")]
    assert tags(ours("datadog", tmp_path)) == theirs


def test_opik_reads_our_reason_first_as_the_explanation(tmp_path: Path) -> None:
    field = "body.scores[0].reason"
    theirs, mine = captured("opik")[field], ours("opik", tmp_path)[field]
    assert mine.startswith(theirs + " [")
    assert captured("opik")["path"] == "/api" + ours("opik", tmp_path)["path"]


def test_braintrust_gets_the_same_by_its_feedback_endpoint(tmp_path: Path) -> None:
    """The SDK writes rows to `/logs3`, which is internal; the published API has an endpoint for feedback instead."""
    found = json.loads((HERE / "braintrust.json").read_text())
    (request,) = found["requests"]
    score, comment = request["body"]["rows"]
    mine = ours("braintrust", tmp_path)
    assert mine["path"] == f"/v1/project_logs/{score['project_id']}/feedback"
    assert mine["header.authorization"] == request["headers"]["authorization"]
    assert mine["body.feedback[0].id"] == score["id"] == comment["origin"]["id"]
    assert {"faithfulness": mine["body.feedback[0].scores.faithfulness"]} == score["scores"]
    assert mine["body.feedback[0].comment"] == comment["comment"]["text"]
    assert mine["body.feedback[0].source"] == score["_audit_source"] == comment["_audit_source"]
    told = {f: v for f, v in mine.items() if f.startswith("body.feedback[0].metadata.")}
    assert told == dict(flat(score["_audit_metadata"], "body.feedback[0].metadata"))


def test_helicone_has_no_sdk_that_sends_scores() -> None:
    """So its request is held to the published schema alone (`test_sinks_of_vendors.py`)."""
    assert {path.stem for path in HERE.glob("*.json")} == {*DIFFERENT, "braintrust", "sample"}


@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_captures_hold_nothing_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert not any(part in text for part in ("127.0.0.1", "localhost", "/root", "/home", "/tmp"))
    if path.stem != "sample":
        assert set(json.loads(text)) == {"sdk", "captured", "requests"}
