"""A user and a password in a URL: sent, and never told."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from pathlib import Path

import pytest

from assay.demo import _judge_name
from assay.echoes import Credentials
from assay.errors import SinkError
from assay.judges import JudgeSettings
from assay.judges._errors import presentable
from assay.judges._openai import OpenAIJudge
from assay.records import Failure, Record, now
from assay.rubrics import load_rubrics
from assay.settings import Settings
from assay.sinks._http import Http
from assay.testing import FakeJudgeServer
from sink_server import SinkServer

PASSWORD = "Planted-pass%2F4821"
SHAPES = (PASSWORD, "Planted-pass/4821", b64encode(b"user:Planted-pass/4821").decode())


def test_a_judge_behind_a_password_is_asked_and_its_refusal_does_not_tell_it() -> None:
    rubric = next(r for r in load_rubrics([Path(__file__).parents[2] / "rubrics"]) if r.name == "relevance")
    record = Record(record_id="r", timestamp=now(), app="shop", input="What does it cost?", output="5 euros.")

    async def ask(url: str) -> object:
        judge = OpenAIJudge(JudgeSettings(engine="openai", model="fake", base_url=url, api_key="planted-key-4821"))
        try:
            return (await judge.judge(record, [rubric]))[0]
        finally:
            await judge.aclose()

    with FakeJudgeServer(api_key="another") as server:
        outcome = asyncio.run(ask(server.base_url.replace("http://", f"http://user:{PASSWORD}@")))
    assert isinstance(outcome, Failure)
    assert outcome.kind == "unauthorized"
    assert "[secret]" in outcome.message, "the server quoted what it was sent"
    assert not any(shape in outcome.message for shape in (*SHAPES, "planted-key-4821"))


@pytest.mark.parametrize("shape", SHAPES)
def test_no_form_of_it_is_presentable(shape: str) -> None:
    shown = presentable(
        f"refused: {shape}.", Credentials("key-of-judge", url=f"https://user:{PASSWORD}@judge.example/v1")
    )
    assert shown == "refused: [secret]."


def test_a_sink_that_quotes_the_password_of_its_url_is_not_repeated() -> None:
    def echo(request: object) -> tuple[int, dict[str, str], bytes]:
        return 401, {}, repr((request.headers["authorization"], *SHAPES)).encode()  # type: ignore[attr-defined]

    with SinkServer(echo) as server:
        http = Http("webhook", server.url.replace("http://", f"http://user:{PASSWORD}@"))
        with pytest.raises(SinkError) as raised:
            http.post("/", json={})
        http.close()
    assert "[secret]" in str(raised.value)
    assert not any(shape in str(raised.value) for shape in SHAPES)


def test_the_demo_names_its_judge_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_JUDGE_BASE_URL", f"https://user:{PASSWORD}@judge.example/v1")
    monkeypatch.setenv("ASSAY_JUDGE", "openai")
    assert _judge_name(Settings()).endswith(" at https://judge.example/v1")
