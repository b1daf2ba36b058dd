"""Two tenants in one deployment: whoever is confined to one is shown nothing of the other, by any command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from assay.cli import app as cli
from assay.errors import ConfigError, SettingsError
from assay.metrics import ScoreCollector, encode
from assay.queue import Queue, Report
from assay.records import Record, Sampling, Score, Usage, now
from assay.store import ChangeEvent, DeadLetter, InstrumentName, LabelRequest, Settled, Store, _scope
from assay.store import _tables as tables
from stores import an_evaluation, with_payloads

#: Neither is part of the other, nor of any other word here.
TENANTS = ("alphazon", "bravonet")


def marked(tenant: str, word: str) -> str:
    return f"{word}-of-{tenant}"


def fill(store: Store, queue: Queue, tenant: str, number: int) -> None:
    """Something of a tenant in every table that holds anything of an app, its name in all of it."""
    moment = now()
    records = [
        Record(
            record_id=marked(tenant, f"record{index}"),
            timestamp=moment - timedelta(minutes=2 + index),
            app=tenant,
            input=marked(tenant, "input"),
            output=marked(tenant, "output"),
            route=marked(tenant, "route"),
            model=marked(tenant, "model"),
            prompt_version=marked(tenant, "prompt"),
            cohort={"tier": marked(tenant, "tier")},
            trace_id=marked(tenant, "trace"),
            session_id=marked(tenant, "session"),
            usage=Usage(cost_usd=0.25),
            sampling=Sampling(probability=1.0, rule=marked(tenant, "rule")),
        )
        for index in range(3)
    ]
    bad = Score(value=0.1, passed=False, defect="incomplete", explanation=marked(tenant, "why"))
    letters = [
        DeadLetter(
            dead_id=f"{number}{tenant}{reason}",
            reason=reason,
            message=marked(tenant, "message"),
            payload=json.dumps({"app": tenant, "input": marked(tenant, "payload")}).encode(),
            record_id=marked(tenant, "record0"),
            app=tenant,
        )
        for reason in ("invalid", marked(tenant, "reason"))
    ]
    store.commit(with_payloads(records), [an_evaluation(r, bad) for r in records], letters)
    claimed = store.claim_outbox("webhook", "c", limit=1000, until=moment)
    keys = [(one.annotation.record_id, one.annotation.evaluation_id) for one in claimed]
    outcome = Settled(outcome="rejected", reason=marked(tenant, "refusal"))
    store.settle_outbox("webhook", "c", {key: outcome for key in keys if tenant in key[0]})
    if number:
        wanted = LabelRequest(record_id=records[2].record_id, rubric="relevance", probability=0.5, twice=False)
        store.request_labels([wanted])
    name = InstrumentName("relevance", "1-0a1b2c3d", "0a1b2c3d" * 8, "lexical", "f" * 64)
    event = ChangeEvent(
        event_id=f"{number}{number}{tenant}",
        kind="drop",
        instrument=name,
        happened_at=moment,
        message=marked(tenant, "drop"),
        app=tenant,
        cohort={"tier": marked(tenant, "tier")},
        details={"text": marked(tenant, "detail")},
    )
    assert store.save_changes(store.read_changes(int(moment.timestamp())), [], [event])
    counts = {json.dumps([tenant, outcome]): 7 for outcome in ("sent", f"dropped:{marked(tenant, 'drop')}")}
    queue.add_counters(Report(tenant, 1, counts))


class Deployment:
    def __init__(self, url: str, redis_url: str, directory: Path) -> None:
        self.store = Store(url, cohort_labels=["tier"], sinks={"webhook": {"scored"}})
        self.queue = Queue.from_url(redis_url)
        self.directory = directory
        for number, tenant in enumerate(TENANTS):
            fill(self.store, self.queue, tenant, number)
        # One of nobody, as far as can be told.
        self.store.commit([], [], [DeadLetter(dead_id="9nobody", reason="undecodable", message="m", payload=b"\xff")])

    def evaluation(self, tenant: str) -> str:
        return str(next(row.evaluation_id for row in self.store.outbox() if row.app == tenant))


@pytest.fixture
def deployment(url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    budgets = tmp_path / "budgets.yaml"
    lines = "".join(f"  - {{name: {t}_day, per: day, tokens: 1000, app: {t}}}\n" for t in TENANTS)
    budgets.write_text(f"budgets:\n{lines}")
    for name, value in {
        "DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "COHORT_LABELS": "tier",
        "BUDGETS": str(budgets),
        "SINKS": "webhook",
        "SINK_WEBHOOK_URL": "http://127.0.0.1:9/",
    }.items():
        monkeypatch.setenv(f"ASSAY_{name}", value)
    made = Deployment(url, redis_url, tmp_path)
    yield made
    made.store.close()
    made.queue.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments])


def said(done: Result) -> str:
    """All that it printed, and what the command line would print of an error."""
    if done.exception is not None and not isinstance(done.exception, SystemExit | ConfigError):
        raise done.exception
    return done.output + (str(done.exception) if isinstance(done.exception, ConfigError) else "")


#: Every command that shows something of records, as JSON and for people.
SHOWING: dict[str, tuple[str, ...]] = {
    "status": ("status", "--window", "24h"),
    "signals": ("signals",),
    "budget": ("budget",),
    "compare": ("compare", "--by", "tier"),
    "compare route": ("compare", "--by", "route"),
    "report": ("report", "--weeks", "2"),
    "defects list": ("defects", "list"),
    "dead list": ("dead", "list", "--all"),
    "outbox list": ("outbox", "list"),
    "changes list": ("changes", "list"),
}
#: With the id of something of the other tenant: it is not there.
NAMING: dict[str, tuple[str, ...]] = {
    "dead show": ("dead", "show", "{number}{tenant}invalid"),
    "dead replay": ("dead", "replay", "{number}{tenant}invalid"),
    "outbox show": ("outbox", "show", "{evaluation}"),
    "outbox retry": ("outbox", "retry", "{evaluation}"),
    "changes show": ("changes", "show", "{number}{number}{tenant}"),
    "changes acknowledge": ("changes", "acknowledge", "{number}{number}{tenant}"),
    "defects set": ("defects", "set", "record0-of-{tenant}", "selection", "--rubric", "relevance"),
}
#: Commands that show nothing of an app, or work on files, with the reason why they take no filter.
WITHOUT: dict[str, str] = {
    "alerts": "of rubrics",
    "calibrate": "of label files; records that it looks up are confined by ASSAY_APPS",
    "canary": "of label files",
    "collect": "receives",
    "pull": "receives",
    "enqueue": "receives",
    "evaluate": "of a file",
    "judge": "of a file",
    "db": "of the schema",
    "demo": "of a store of its own",
    "dev": "of a store of its own",
    "doctor": "of the deployment: names no app",
    "rubrics": "of rubrics",
    "worker": "scores all apps",
}


@pytest.mark.parametrize(("form", "how"), [("json", "option"), ("text", "variable")])
def test_no_command_shows_anything_of_another_tenant(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, form: str, how: str
) -> None:
    for own, other in (TENANTS, TENANTS[::-1]):
        if how == "variable":
            monkeypatch.setenv("ASSAY_APPS", own)
        chosen = ("--app", own) if how == "option" else ()
        for name, command in SHOWING.items():
            as_json = ("--json",) if form == "json" else ()
            done = run(*command, *chosen, *as_json)
            text = said(done)
            assert done.exit_code == 0, text
            assert other not in text, name
            if (name, form) != ("changes list", "text"):
                assert own in text, f"{name} shows nothing at all: the test sees nothing"


def test_without_a_filter_all_is_shown(deployment: Deployment) -> None:
    for name, command in SHOWING.items():
        text = said(run(*command, "--json"))
        assert all(tenant in text for tenant in TENANTS), name
    assert "9nobody" in said(run("dead", "list", "--json"))
    text = said(run("status", "--app", TENANTS[0], "--app", TENANTS[1], "--json"))
    assert all(tenant in text for tenant in TENANTS), "repeatable"


def test_of_an_app_that_nothing_has_come_from_it_is_said(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = TENANTS
    for command in (("dead", "list"), ("outbox", "list"), ("status",)):
        done = run(*command, "--app", "alphason", "--json")
        assert done.exit_code == 0
        assert f"no record of the app 'alphason' has come in so far: did you mean {own}?" in " ".join(
            done.stderr.split()
        )
        json.loads(done.stdout)
        assert "warning" not in run(*command, "--app", own).stderr
    monkeypatch.setenv("ASSAY_APPS", f"{own},bravonett")
    told = run("dead", "list").stderr
    assert "'bravonett'" in told
    assert other not in told.replace("bravonett", ""), "what others are called is not told to who may not see them"


@pytest.mark.parametrize("name", NAMING)
def test_what_is_named_by_its_id_is_not_there_for_another_tenant(deployment: Deployment, name: str) -> None:
    own, other = TENANTS
    before = deployment.store.outbox(), deployment.store.dead_letters(), deployment.store.change_events()
    command = [part.format(number=1, tenant=other, evaluation=deployment.evaluation(other)) for part in NAMING[name]]
    done = run(*command, "--app", own)
    assert isinstance(done.exception, ConfigError), done.output
    assert marked(other, "").strip("-") not in done.output
    after = deployment.store.outbox(), deployment.store.dead_letters(), deployment.store.change_events()
    assert after == before, "nothing was changed"
    mine = [part.format(number=0, tenant=own, evaluation=deployment.evaluation(own)) for part in NAMING[name]]
    if name == "dead replay":
        return  # what is kept is no record: it would be refused whoever asks
    assert run(*mine, "--app", own).exit_code == 0


def test_acting_on_all_acts_on_ones_own(deployment: Deployment) -> None:
    own, other = TENANTS
    assert json.loads(said(run("outbox", "retry", "--all", "--app", own, "--json"))) == {"retried": 3}
    states = {(row.app, row.state) for row in deployment.store.outbox()}
    assert states == {(own, "waiting"), (other, "rejected")}
    depth = deployment.store.outbox_depths()["webhook"]
    assert (depth.waiting, depth.rejected) == (3, 3)
    refused = json.loads(said(run("dead", "replay", "--all", "--app", own, "--json")))["refused"]
    assert {one["dead_id"] for one in refused} == {f"0{own}invalid", f"0{own}{marked(own, 'reason')}"}


def test_deleting_a_subject_deletes_ones_own(deployment: Deployment) -> None:
    own, other = TENANTS
    named = [part for tenant in TENANTS for part in ("--record", marked(tenant, "record0"))]
    done = json.loads(said(run("purge", *named, "--app", own, "--json")))
    assert done["deleted"]["records"] == done["deleted"]["payloads"] == done["deleted"]["outbox"] == 1
    assert done["deleted"]["dead_letters"] == 2
    assert list(deployment.store.payloads([marked(own, "record0"), marked(other, "record0")])) == [
        marked(other, "record0")
    ]
    assert {letter.app for letter in deployment.store.dead_letters()} == {other, None}
    done = json.loads(said(run("purge", "--record", marked(other, "record1"), "--app", own, "--json")))
    assert not any(done["deleted"].values())
    assert done["waiting_in_redis"] == 0
    assert "are for one subject" in said(run("purge", "--app", own))


def test_labels_are_of_ones_own_records(deployment: Deployment) -> None:
    own, other = TENANTS
    file = deployment.directory / "out.jsonl"
    picked = said(run("labels", "pick", "--rubric", "relevance", "--app", own, "--json"))
    assert other not in picked
    assert json.loads(picked)["candidates"] == 3, "where the pick of another ended is nothing to this one"
    assert said(run("labels", "export", str(file), "--rubric", "relevance", "--app", own))
    assert own in file.read_text()
    assert other not in file.read_text()
    waiting = [r.record_id for r in deployment.store.label_requests("relevance") if r.exported_at is None]
    assert waiting == [marked(other, "record2")]


def test_an_app_outside_of_the_setting_is_refused(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_APPS", TENANTS[0])
    for command in (*SHOWING.values(), ("exporter", "--port", "0")):
        done = run(*command, "--app", TENANTS[1])
        assert isinstance(done.exception, SettingsError), command
        assert "not one of ASSAY_APPS" in str(done.exception)


@pytest.mark.parametrize("own", TENANTS)
def test_an_exporter_of_one_tenant(deployment: Deployment, url: str, own: str) -> None:
    (other,) = set(TENANTS) - {own}
    from assay import wiring
    from assay.rubrics import load_rubrics
    from assay.settings import load_settings

    settings = load_settings(apps=(own,))
    budgets = wiring.read_budgets(settings, load_rubrics())
    assert budgets is not None
    with wiring.open_store(settings) as store:
        collector = ScoreCollector(
            store,
            deployment.queue,
            cohort_labels=["tier"],
            rubrics=load_rubrics(),
            ledger=wiring.open_ledger(settings, budgets),
        )
        body = encode(collector.collect(), openmetrics=True)[0].decode()
    assert other not in body
    for series in (
        "assay_pass_ratio",
        "assay_records_total",
        "assay_client_records_total",
        "assay_budget_limit_tokens",
    ):
        assert any(line.startswith(series) and own in line for line in body.splitlines()), series
    assert 'assay_outbox_rejected{sink="webhook"} 3' in body


def test_events_of_a_judge_are_seen_by_all_and_settled_by_none(deployment: Deployment) -> None:
    store, moment = deployment.store, now()
    name = InstrumentName("relevance", "1", "h", "lexical", "f")
    event = ChangeEvent(event_id="judge1", kind="judge_changed", instrument=name, happened_at=moment, message="m")
    assert store.save_changes(store.read_changes(int(moment.timestamp())), [], [event])
    assert "judge1" in said(run("changes", "list", "--app", TENANTS[0], "--json"))
    done = run("changes", "acknowledge", "judge1", "--app", TENANTS[0])
    assert "of the whole deployment" in said(done)
    assert store.change_event("judge1").acknowledged_at is None
    assert run("changes", "acknowledge", "judge1").exit_code == 0


# -- nothing is forgotten


def test_every_table_has_its_place() -> None:
    """Whoever adds a table says whose its rows are."""
    placed = [_scope.BY_APP, _scope.BY_RECORD, _scope.BY_SERIES, _scope.SHARED, _scope.OTHERS]
    assert sorted(name for names in placed for name in names) == sorted(tables.metadata.tables)
    for table in tables.metadata.tables.values():
        columns = set(table.c.keys())
        if table.name in _scope.SHARED:
            assert not {"app", "record_id", "series_id"} & columns, f"{table.name} holds something of an app"


def test_every_command_is_tested_or_says_why_not() -> None:
    from typer.main import get_command

    root: Any = get_command(cli)
    covered = {command[0] for command in (*SHOWING.values(), *NAMING.values())} | {"labels", "exporter", "purge"}
    assert covered | set(WITHOUT) == set(root.commands)
    assert not covered & set(WITHOUT)
    for name in covered:
        command = root.commands[name]
        for leaf in getattr(command, "commands", {name: command}).values():
            assert "--app" in {option for parameter in leaf.params for option in parameter.opts}, f"{name} {leaf.name}"


def test_a_worker_sees_all_whatever_the_setting(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from assay.cli import _processes

    assert "apps=()" in inspect.getsource(_processes.worker)
    assert deployment.store.of_all_apps().shows("anybody")
