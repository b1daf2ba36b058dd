"""The fakes that are shipped: they must be what they say, or every test on them is worth nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter

import jsonschema
import pytest

from assay.judges._prompt import render, schema, shape, spelled_out
from assay.records import Failure, NotApplicable, Score
from assay.rubrics import load_rubrics
from assay.testing import FAULTS, FakeJudgeServer, Reply, ScriptedJudge
from assay.testing.__main__ import main
from assay.testing._answers import _Shape
from judging import a_record, ask, checklist, claims, ordinal


def post(base_url: str, body: dict, *, key: str = "none"):
    """(status, body, headers) of one request, whatever its status."""
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def asking(rubrics, record=None, **more) -> dict:
    wanted = {"type": "json_schema", "json_schema": {"name": "v", "strict": True, "schema": schema(rubrics)}}
    return {"model": "m", "messages": render(record or a_record(), rubrics), "response_format": wanted} | more


def verdicts(body: bytes) -> dict:
    return json.loads(json.loads(body)["choices"][0]["message"]["content"])


class TestServer:
    @pytest.mark.parametrize("rubrics", [load_rubrics(), [claims()], [ordinal(), checklist()]], ids=len)
    def test_its_verdicts_are_valid_by_the_schema_it_is_sent(self, rubrics):
        with FakeJudgeServer() as server:
            for number in range(10):
                _, body, _ = post(server.base_url, asking(rubrics, a_record(output=f"answer {number}")))
                jsonschema.validate(verdicts(body), schema(rubrics))

    def test_without_a_schema_it_reads_the_shape_in_the_prompt(self):
        rubrics = load_rubrics()
        with FakeJudgeServer() as server:
            body = asking(rubrics)
            del body["response_format"]
            body["messages"][0]["content"] += f"\n\n{spelled_out(rubrics)}"
            jsonschema.validate(verdicts(post(server.base_url, body)[1]), schema(rubrics))

    def test_the_shape_it_reads_is_the_schema_that_was_written(self):
        def bare(part):
            if "enum" in part:
                return {"enum": part["enum"]}
            if part["type"] == "object":
                return {
                    "type": "object",
                    "properties": {name: bare(inner) for name, inner in part["properties"].items()},
                }
            return {"type": "array", "items": bare(part["items"])} if part["type"] == "array" else part

        for rubric in [*load_rubrics(), ordinal(), checklist(), claims()]:
            assert _Shape(shape(rubric.scale.schema())).value() == bare(rubric.scale.schema())

    def test_the_same_seed_and_messages_have_the_same_verdict_and_others_another(self):
        body = asking([ordinal()])
        found = []
        for seed in (0, 0, 1, 2, 3, 4, 5):
            with FakeJudgeServer(seed=seed) as server:
                found.append(verdicts(post(server.base_url, body)[1])["relevance"]["level"])
        assert found[0] == found[1]
        assert len(set(found)) > 1

    def test_faults_come_at_their_rate_and_the_same_in_another_run(self):
        def played():
            with FakeJudgeServer(faults={"500": 0.2, "429": 0.1}, seed=3) as server:
                statuses = [post(server.base_url, asking([ordinal()], a_record(output=str(n))))[0] for n in range(200)]
                counts = Counter("ok" if status == 200 else str(status) for status in statuses)
                assert server.traffic.played == counts
                return statuses

        first = played()
        assert first == played()
        assert 25 <= first.count(500) <= 56
        assert 9 <= first.count(429) <= 33

    def test_another_try_of_the_same_messages_meets_another_fate(self):
        with FakeJudgeServer(faults={"500": 0.5}) as server:
            statuses = Counter(post(server.base_url, asking([ordinal()]))[0] for _ in range(40))
        assert set(statuses) == {200, 500}

    def test_every_fault_but_those_that_never_end_is_answered(self):
        ending = [fault for fault in FAULTS if fault not in ("hang", "trickle", "disconnect")]
        with FakeJudgeServer() as server:
            server.script(*ending)
            for fault in ending:
                status, body, _ = post(server.base_url, asking([ordinal(), checklist()]))
                assert (status == int(fault[:3])) if fault[:3].isdigit() else body, fault
            assert server.traffic.played == Counter(ending)

    def test_a_script_comes_before_chance(self):
        with FakeJudgeServer(fault_rate=1.0) as server:
            server.script(Reply(content="one"), "ok", Reply(status=418, body={"a": 1}, headers={"x-more": "yes"}))
            first, second, third = (post(server.base_url, asking([ordinal()])) for _ in range(3))
        assert json.loads(first[1])["choices"][0]["message"]["content"] == "one"
        assert verdicts(second[1])["relevance"]
        assert (third[0], json.loads(third[1]), third[2]["x-more"]) == (418, {"a": 1}, "yes")

    def test_verdicts_can_be_made_by_a_function(self):
        def verdict(asked):
            if asked.rubric == "relevance":
                return {"explanation": asked.text[-20:], "level": 1 if "[bad]" in asked.text else 5}
            return None

        with FakeJudgeServer(verdict=verdict) as server:
            good = ask(server.base_url, [ordinal(), checklist()])
            bad = ask(server.base_url, [ordinal()], a_record(output="[bad]"))
        assert (good[0].value, bad[0].value) == (1.0, 0.0)
        assert isinstance(good[1], Score | NotApplicable)

    def test_bad_when_gives_the_worst_verdicts_to_some_and_the_best_to_others(self):
        rubrics = load_rubrics()
        with FakeJudgeServer(bad_when="[bad]") as server:
            good = ask(server.base_url, rubrics)
            bad = ask(server.base_url, rubrics, a_record(output="It is [bad]."))
        assert [outcome.value for outcome in good] == [1.0] * 4
        assert [outcome.value for outcome in bad] == [0.0] * 4

    def test_unsupported_parameters_are_named(self):
        with FakeJudgeServer(unsupported=("temperature", "json_object")) as server:
            status, body, _ = post(server.base_url, asking([ordinal()], temperature=0))
            assert (status, json.loads(body)["error"]["param"]) == (400, "temperature")
            status, body, _ = post(server.base_url, asking([ordinal()], response_format={"type": "json_object"}))
            assert (status, json.loads(body)["error"]["param"]) == (400, "response_format")

    def test_it_lists_its_model_and_counts_its_traffic(self):
        with FakeJudgeServer(api_key="k") as server:
            assert post(server.base_url, asking([ordinal()]), key="wrong")[0] == 401
            assert post(server.base_url, asking([ordinal()]), key="k")[0] == 200
            request = urllib.request.Request(f"{server.base_url}/models", headers={"authorization": "Bearer k"})
            with urllib.request.urlopen(request, timeout=30) as response:
                assert json.load(response)["data"][0]["id"] == "fake-judge"
            with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/traffic", timeout=30) as response:
                seen = json.load(response)
        assert (seen["calls"], seen["played"]) == (2, {"401": 1, "ok": 1})
        assert seen["prompt_tokens"] == server.traffic.prompt_tokens > 0

    def test_it_caches_prompts_as_openai_does_when_told_to(self):
        long = a_record(contexts=("Refunds take five days. " * 400,))
        other = a_record(record_id="r-2", input="Anything else?", contexts=("Returns are free. " * 400,))
        short = a_record(record_id="r-3", contexts=("Short.",))
        with FakeJudgeServer(prompt_cache=True) as server:
            seen = []
            for record in (long, other, long, short, short):
                _, body, _ = post(server.base_url, asking([ordinal()], record))
                seen.append(json.loads(body)["usage"])
            cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in seen]
            assert cached[:2] == cached[3:] == [0, 0]
            # The whole prompt was there before: all of it but what is left of the last step.
            assert 0 <= seen[2]["prompt_tokens"] - cached[2] < 128
            assert cached[2] % 128 == 0
            assert server.traffic.cached_tokens == sum(cached) > 1_024
        with FakeJudgeServer() as server:
            _, body, _ = post(server.base_url, asking([ordinal()], long))
            assert "prompt_tokens_details" not in json.loads(body)["usage"]

    def test_names_that_it_does_not_know_are_refused_at_once(self):
        for make in (
            lambda: FakeJudgeServer(faults={"fire": 1.0}),
            lambda: FakeJudgeServer(unsupported=("top_k",)),
            lambda: FakeJudgeServer().script("fire"),
        ):
            with pytest.raises(ValueError, match="is not one of"):
                make()

    def test_a_port_that_is_taken_is_said(self):
        with FakeJudgeServer() as first, pytest.raises(OSError, match="address"), FakeJudgeServer(port=first.port):
            pass

    def test_it_stops_with_calls_in_flight(self):
        with FakeJudgeServer() as server:
            server.script("hang")
            outcome = ask(server.base_url, [ordinal()], timeout_seconds=0.2)[0]
        assert outcome.kind == "timeout"


def test_it_runs_by_itself_and_stops_when_told():
    command = [sys.executable, "-m", "assay.testing", "--faults", "500=1.0", "--unsupported", "seed", "--bad-when", "x"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        base_url = process.stdout.readline().strip()
        assert post(base_url, asking([ordinal()]))[0] == 500
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_wrong_argument_is_said(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--latency", "soon"])
    assert raised.value.code == 2
    assert "--latency" in capsys.readouterr().err


class TestScriptedJudge:
    def judged(self, script, *rubrics):
        judge = ScriptedJudge(script)
        return judge, asyncio.run(judge.judge(a_record(), rubrics))

    def test_it_says_what_it_is_told(self):
        failure = Failure(kind="timeout", message="late")
        assert self.judged(failure, ordinal(), checklist())[1] == [failure, failure]
        assert self.judged({"safety": failure}, ordinal(), checklist())[1] == [Score(value=1.0, passed=True), failure]
        assert self.judged(None, ordinal())[1] == [Score(value=1.0, passed=True)]
        by_name = self.judged(lambda record, rubric: NotApplicable(reason=rubric.name), ordinal())[1]
        assert by_name == [NotApplicable(reason="relevance")]

    def test_it_remembers_what_it_was_asked_and_that_it_was_closed(self):
        judge, _ = self.judged(None, ordinal(), checklist())
        assert judge.calls == [("r-1", ("relevance", "safety"))]
        asyncio.run(judge.aclose())
        assert judge.closed

    def test_two_names_are_two_judges(self):
        assert ScriptedJudge(name="a").fingerprint != ScriptedJudge(name="b").fingerprint
