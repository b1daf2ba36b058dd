"""`assay outbox` on a store of its own, in this process; the end-to-end test has a worker beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay.cli import app
from assay.errors import ConfigError
from assay.records import now
from assay.store import Settled, Store
from stores import A_FAILURE, a_record, commit

Run = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ASSAY_DATABASE_URL", f"sqlite:///{tmp_path}/s.db")
    made = Store(f"sqlite:///{tmp_path}/s.db", sinks={"phoenix": {"scored", "failed"}, "latitude": {"scored"}})
    made.upgrade()
    return made


@pytest.fixture
def run() -> Run:
    def run_(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["outbox", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    return run_


def refuse(store: Store, sink: str, reason: str) -> None:
    claimed = store.claim_outbox(sink, "c", limit=100, until=now() + timedelta(minutes=1))
    keys = [(one.annotation.record_id, one.annotation.evaluation_id) for one in claimed]
    store.settle_outbox(sink, "c", {key: Settled(outcome="rejected", reason=reason) for key in keys})


def test_nothing_was_ever_owed(store: Store, run: Run) -> None:
    assert "Nothing was ever owed to a sink" in run("list")
    assert json.loads(run("list", "--json")) == {"sinks": {}, "rows": []}


def test_what_is_owed_is_listed_by_sink_and_state_and_reason(store: Store, run: Run) -> None:
    commit(store, (a_record("r"), 0.5), (a_record("s"), A_FAILURE))
    refuse(store, "phoenix", "422: [red]no[/] such rubric")
    text = run("list")
    assert "422: [red]no[/] such rubric" in text, "what a sink says is no markup"
    assert "assay outbox retry --all" in text
    assert len(json.loads(run("list", "--sink", "phoenix", "--json"))["rows"]) == 2
    assert [row["sink"] for row in json.loads(run("list", "--state", "waiting", "--json"))["rows"]] == ["latitude"]
    assert json.loads(run("list", "--reason", "404", "--json"))["rows"] == []
    assert json.loads(run("list", "--json"))["sinks"]["phoenix"]["rejected"] == 2


def test_one_evaluation_sink_by_sink(store: Store, run: Run) -> None:
    commit(store, (a_record("r", trace_id="a" * 32), 0.5))
    refuse(store, "phoenix", "422: no")
    whole = str(store.outbox()[0].evaluation_id)
    text = run("show", whole[:8])
    assert f"evaluation {whole} of record r" in text
    assert f"relevance by lexical: scored, 0.50; trace {'a' * 32}, span –" in text
    assert "latitude: tried again at" in text
    assert "phoenix: set aside at" in text
    assert {row["sink"] for row in json.loads(run("show", whole, "--json"))} == {"phoenix", "latitude"}
    with pytest.raises(ConfigError, match="nothing in the outbox has an id like 'ffffffff'"):
        run("show", "ffffffff")


def test_what_was_set_aside_is_tried_again(store: Store, run: Run) -> None:
    commit(store, (a_record("r"), 0.5), (a_record("s"), 0.5))
    refuse(store, "phoenix", "422: no")
    refuse(store, "latitude", "413: too large")
    one = str(store.outbox(sink="phoenix")[0].evaluation_id)
    assert "2 wait again" in run("retry", one), "at both sinks"
    assert "0 wait again" in run("retry", "--reason", "404")
    assert json.loads(run("retry", "--sink", "phoenix", "--json")) == {"retried": 1}
    assert "1 wait again" in run("retry", "--all")
    assert store.outbox(state="rejected") == []
    with pytest.raises(ConfigError, match="name one evaluation, or say --sink"):
        run("retry")
