"""The judge server's replies to what each peer library asks are valid by the form that it asked for.

The requests are of the forms that the libraries sent, cut to what says the form of the reply.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import performance_page as page
from jsonschema import Draft202012Validator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = {"type": "string"}


def an_object(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def by_format(schema: dict[str, object], name: str = "score") -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}}


def by_tool(schema: dict[str, object], name: str) -> dict[str, object]:
    return {"tools": [{"type": "function", "function": {"name": name, "parameters": schema}}]}


STATEMENTS = an_object(statements={"type": "array", "items": TEXT})
VERDICT = {
    "$defs": {"Verdict": an_object(statement=TEXT, reason=TEXT, verdict={"type": "integer"})},
    **an_object(statements={"type": "array", "items": {"$ref": "#/$defs/Verdict"}}),
}
GEVAL = an_object(reason=TEXT, score={"type": "integer", "minimum": 0, "maximum": 10})
RATED = {"type": "string", "description": "The evaluation rating/result"}
STATED = "Break it down.\nPlease return JSON that complies with the following schema as specified in JSON Schema:\n"
#: By library: what says the form, the prompt, and the schema that the reply has to meet.
FORMS = {
    "autoevals": (by_tool(an_object(reasons=TEXT, choice={"enum": ["Y", "N"]}), "select_choice"), "Judge it.", None),
    "autoevals-ragas": (by_tool(STATEMENTS, "extract_statements"), "Create statements.", None),
    "openevals": (by_format(an_object(reasoning=TEXT, score={"type": "boolean"})), "Judge it.", None),
    "phoenix": (by_format(an_object(explanation=TEXT, label={"enum": ["toxic", "non-toxic"]})), "Judge it.", None),
    "pydantic": (
        by_tool(an_object(reason=TEXT, **{"pass": {"type": "boolean"}}, score={"type": "number"}), "final_result"),
        "Judge it.",
        None,
    ),
    "mlflow": (by_format(an_object(result=RATED, rationale=TEXT)), "Judge it.", None),
    "ragas": (
        {"response_format": {"type": "json_object"}},
        f"{STATED}{json.dumps(STATEMENTS)}Do not quote.",
        STATEMENTS,
    ),
    "ragas-evaluate": ({"n": 1}, f"{STATED}{json.dumps(VERDICT)}Do not quote.\nInput: {{}}", VERDICT),
    "deepeval": (by_format(STATEMENTS, "Statements"), "Give statements.", None),
    "deepeval-geval": (
        {"logprobs": True},
        [{"type": "text", "text": 'Evaluate.\n**Example JSON:**\n{\n  "reason": "...",\n  "score": 0\n}\n\nJSON:'}],
        GEVAL,
    ),
}


@pytest.fixture(scope="module")
def replies() -> dict[str, object]:
    """What the server's replier answers, asked as a script would: in a process with `benchmarks` on its path."""
    bodies = {name: {"messages": [{"role": "user", "content": p}], **form} for name, (form, p, _) in FORMS.items()}
    script = (
        "import json, sys; from peers.replies import reply;"
        "print(json.dumps({name: reply(body) for name, body in json.load(sys.stdin).items()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(bodies), capture_output=True, text=True, cwd=BENCHMARKS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FORMS)
def test_a_reply_is_valid_by_the_form_that_was_asked_for(name: str, replies: dict[str, object]) -> None:
    form, _, schema = FORMS[name]
    made = replies[name]
    if "tools" in form:
        function = form["tools"][0]["function"]  # type: ignore[index]
        called = made["tool_calls"][0]["function"]  # type: ignore[index]
        assert called["name"] == function["name"]
        made, schema = called["arguments"], function["parameters"]
    if "json_schema" in form.get("response_format", {}):  # type: ignore[operator]
        schema = form["response_format"]["json_schema"]["schema"]  # type: ignore[index]
    found = json.loads(made)  # type: ignore[arg-type]
    Draft202012Validator(schema).validate(found)
    # An empty list of claims would leave nothing to ask in the next step, and a score that is none.
    assert all(len(value) == 3 for value in found.values() if isinstance(value, list))


def test_a_verdict_is_one_that_its_library_counts_as_good(replies: dict[str, object]) -> None:
    assert json.loads(replies["mlflow"])["result"] == "yes"  # type: ignore[arg-type]
    assert json.loads(replies["deepeval-geval"])["score"] == 10  # type: ignore[arg-type]


def row(name: str, rate: float, **fields: object) -> dict[str, object]:
    given = {"records": 300, "in_flight": 128, "cpu_ms_per_record": 2.5, "calls_per_record": 4.0, "rss_mb": 90.0}
    given |= {"prompt_tokens_per_record": 4000.0, "completion_tokens_per_record": 250.0, "missing_scores": 0}
    return {"name": name, "records_per_second": rate, **given, **fields}


ROWS = [
    row("slow:default", 10.0, label="slow & sure", version="1.2", missing_scores=3),
    row("raw", 200.0, in_flight=128.0),
    row("sqlite", 100.0),
]


def test_peers_are_shown_fastest_first_with_ratios_money_and_what_is_missing() -> None:
    lines = page.peers(ROWS).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| floor: bare asyncio",
        "| assay, whole system, SQLite",
        "| slow & sure (1.2)",
    ]
    assert lines[0].startswith("| floor: bare asyncio | 128 | 300 | 200.0 |")
    # 4,000 tokens at 0.15 and 250 at 0.60 USD a million, for 1,000 records.
    assert lines[2].endswith("| 10.0 | 0.05 | 0.10 | 2.5 | 4.0 | 4,000 + 250 | 0.75 | 90 | 3 |")


def test_a_run_without_a_floor_has_no_ratios_to_it() -> None:
    assert "| 10.0 |  |  | 2.5 |" in page.peers(ROWS[:1])


def test_the_bars_are_as_long_as_the_rates() -> None:
    from xml.etree import ElementTree

    bars = [one for one in ElementTree.fromstring(page.peers_plot(ROWS)).iter() if one.tag.endswith("rect")][1:]
    assert [float(bar.get("width") or 0) for bar in bars] == [360.0, 180.0, 18.0]


def test_what_could_not_be_driven_is_listed_with_the_reason() -> None:
    conditions = {"date": "2026-01-31", "python": "3.11", "cores": 2, "load_average": 1.0, "latency_seconds": 0.6}
    conditions |= {"in_flight": 128, "versions": {"celery": "5.7"}, "least_load": 0.4, "most_load": 2.1}
    missing = [{"name": "ragas:evaluate", "reason": "cannot be installed: no such version"}]
    result = {"conditions": conditions, "rows": ROWS, "not_driven": missing}
    made = page.written("<!-- peers -->\nold\n<!-- end of peers -->\n", {"peers": result})
    assert "- not driven: ragas:evaluate: cannot be installed: no such version" in made
    assert "load average 0.4 to 2.1" in made
