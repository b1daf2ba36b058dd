"""`assay purge` of one subject, as a person runs it, with records of theirs still in a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from assay.cli import app as cli
from assay.errors import ConfigError
from assay.queue import Queue, encode_batch
from assay.records import Outcome, Record, Score
from assay.redaction import hash_user_id
from assay.reuse import Reuse
from assay.rubrics import Rubric
from assay.store import Store
from judging import ordinal
from stores import a_record, an_evaluation, with_payloads

pytestmark = pytest.mark.integration

SALT = "synthetic salt"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["purge", *arguments, "--json"])


@pytest.fixture
def url(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ASSAY_DATABASE_URL", f"sqlite:///{tmp_path}/scores.db")
    monkeypatch.setenv("ASSAY_REDIS_URL", redis_url)
    monkeypatch.setenv("ASSAY_USER_ID_SALT", SALT)
    monkeypatch.delenv("ASSAY_APPS", raising=False)
    return f"sqlite:///{tmp_path}/scores.db"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a command's connections end with its process
def test_a_user_is_deleted_once_nothing_of_them_waits(url: str, redis_url: str) -> None:
    user = hash_user_id("4711", SALT)
    stored = [a_record(f"r{i}", user_id=user if i else "another", trace_id=f"{i:032x}") for i in range(3)]
    waiting = [a_record("w1", user_id=user).to_json(), a_record("w2", user_id="another").to_json()]
    queue = Queue.from_url(redis_url)
    with Store(url) as store:
        store.upgrade()
        store.commit(with_payloads(stored), [an_evaluation(record, 0.5) for record in stored])
        payload = encode_batch(waiting, batch_id="b1", enqueued_at=1.0)
        assert queue.push(payload, batch_id="b1", records=2, enqueued_at=1.0)
        queue.keep_unreadable(f'{{"user_id":"{user}",'.encode())

        tried = run("--user-id", "4711", "--dry-run")
        assert tried.exit_code == 1, tried.output
        assert len(store.payloads(["r0", "r1", "r2"])) == 3
        done = run("--user-id", "4711")
        found, said = json.loads(tried.output), json.loads(done.output)
        assert said == found | {"dry_run": False}
        assert said["waiting_in_redis"] == 2, "one of a batch, and one that is no doorbell"
        assert said["deleted"]["payloads"] == 2
        assert list(store.payloads(["r0", "r1", "r2"])) == ["r0"]
        assert queue.depth().records == 2, "workers have them"

        claim = queue.claim("b1", lease_seconds=30)
        assert claim is not None
        queue.finish("b1")
        queue.forget_unreadable(next(queue.unreadable()))
        again = run("--user", user)
        assert again.exit_code == 0, again.output
        assert not any(json.loads(again.output)["deleted"].values())
        # As an SDK of traces writes it.
        traced = run("--trace", "00000000-0000-0000-0000-000000000000", "--record", "nobody")
        assert json.loads(traced.output)["deleted"]["payloads"] == 1
        assert traced.exit_code == 0
    queue.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_verdicts_kept_for_reuse_quote_the_user_and_go_too(
    url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quoting = Score(value=0.0, passed=False, explanation="Ada says that she is ill")
    asked: list[str] = []

    async def judge(record: Record) -> None:
        reuse = Reuse(redis_url, "assay", seconds=3600)

        async def ask(rubrics: Sequence[Rubric]) -> list[Outcome]:
            asked.append(record.record_id)
            return [quoting for _ in rubrics]

        await reuse.outcomes(record, [ordinal()], judge="j", fingerprint="f", ask=ask)
        await reuse.aclose()

    theirs = [
        a_record("r1", user_id="u1"),
        a_record("r2", trace_id="ab" * 16),
        a_record("r3"),
        a_record("r5", app="blog"),
    ]
    other = a_record("r4", user_id="u2")
    records = [replace(record, output=record.record_id) for record in (*theirs, other)]
    for record in records:
        asyncio.run(judge(record))
    with Store(url) as store:
        store.upgrade()
    subject = ("--user", "u1", "--trace", "ab" * 16, "--record", "r3", "--record", "r5")
    tried, first, second = (run(*subject, *more) for more in (["--dry-run"], ["--app", "shop"], []))
    counts = [json.loads(done.stdout)["deleted"]["reusable_verdicts"] for done in (tried, first, second)]
    assert counts == [4, 3, 1], "the last is of another app"
    assert tried.exit_code == first.exit_code == second.exit_code == 0
    asked.clear()
    for record in records:
        asyncio.run(judge(replace(record, record_id="again")))
    assert asked == ["again"] * 4, "that of r4 is still known"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_without_redis_the_database_is_cleared_and_the_rest_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_REDIS_URL", "redis://127.0.0.1:1/0")
    with Store(url) as store:
        store.upgrade()
        record = a_record("r1")
        store.commit(with_payloads([record]), [an_evaluation(record, 0.5)])
        done = run("--record", "r1")
        assert done.exit_code == 1
        assert json.loads(done.output)["waiting_in_redis"] is None
        assert store.payloads(["r1"]) == {}


def test_a_user_id_needs_the_salt_and_a_dry_run_a_subject(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_USER_ID_SALT")
    refused = run("--user-id", "4711")
    assert isinstance(refused.exception, ConfigError)
    assert "ASSAY_USER_ID_SALT" in str(refused.exception)
    assert "for one subject" in str(run("--dry-run").exception)
