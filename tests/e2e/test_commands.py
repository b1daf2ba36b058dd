"""The commands, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.rubrics import SHIPPED, load_rubrics
from assay.store import DeadLetter
from assay.testing import FakeJudgeServer
from command import assay, clean_environment
from deployment import Deployment, record
from judging import ask

pytestmark = pytest.mark.e2e


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db") as made:
        yield made


def row(index: int) -> dict[str, object]:
    return {
        "record_id": f"r{index}",
        "input": "What does it cost?",
        "output": "It costs 5 euros.",
        "contexts": ["It costs 5 euros."],
    }


def test_enqueue_reports_bad_rows_by_line_keeps_them_and_sends_the_rest(deployment: Deployment, tmp_path: Path) -> None:
    rows = [
        json.dumps(row(1)),
        "not json",
        json.dumps({**row(2), "sampling": {"probability": 0}}),
        json.dumps({**row(3), "sampling": {"probability": 1.5}}),
        json.dumps({**row(4), "contxts": []}),
        json.dumps(row(5)),
        '{"record_id": "nan", "timestamp": "2026-01-01T00:00:00Z", "latency_seconds": NaN}',
    ]
    file = tmp_path / "records.jsonl"
    file.write_bytes("\n".join(rows).encode() + b"\n" + b'{"input": "\xff"}\n')
    done = deployment.run("enqueue", "records.jsonl", check=False)
    assert done.returncode == 2
    told = done.stderr.decode()
    for line in (2, 3, 4, 5, 7, 8):
        assert f"records.jsonl:{line}:" in told, told
    assert "sampling.probability" in told
    assert "contexts" in told.split("records.jsonl:5:")[1].splitlines()[0]
    assert b"2 records enqueued, 6 rejected" in done.stdout
    kept = [json.loads(line) for line in (tmp_path / "records.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in kept] == [2, 3, 4, 5, 7, 8]
    assert kept[0]["row"] == "not json"
    assert deployment.queue.depth().records == 2


def test_the_same_file_twice_is_scored_once(deployment: Deployment, tmp_path: Path) -> None:
    fields = {key: value for key, value in row(1).items() if key != "record_id"}
    (tmp_path / "records.jsonl").write_text(json.dumps(fields) + "\n")
    worker = deployment.start_worker()
    for _ in range(2):
        deployment.run("enqueue", "records.jsonl")
    deployment.drain(worker)
    assert deployment.record_rows() == 1


def test_enqueue_reads_csv_and_standard_input(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text('question,output,contexts\n"What, now?",an answer,"[""one"", ""two""]"\n')
    deployment.run("enqueue", "records.csv", "--map", "question=input", "--app", "shop")
    deployment.run("enqueue", "-", stdin=json.dumps(row(1)).encode())
    assert deployment.queue.depth().records == 2
    dropped = deployment.run("enqueue", "records.csv", "--unknown", "metadata", "--dry-run", "--json")
    assert json.loads(dropped.stdout) == {"enqueued": 1, "rejected": []}


def test_judge_scores_one_record_now(deployment: Deployment) -> None:
    done = deployment.run("judge", "-", "--json", stdin=json.dumps(row(1)).encode())
    verdicts = {verdict["rubric"]: verdict for verdict in json.loads(done.stdout)}
    assert set(verdicts) == {"faithfulness", "relevance", "safety", "completeness"}
    assert verdicts["faithfulness"]["outcome"] == "scored"
    deployment.start_judge()
    told = deployment.run("judge", "-", "--show-prompt", stdin=json.dumps(row(1)).encode()).stdout.decode()
    assert "prompt +" in told
    assert "It costs 5 euros." in told
    done = deployment.run("judge", "-", "--show-prompt", "--json", stdin=json.dumps(row(1)).encode())
    shown = json.loads(done.stdout)
    assert len(shown["evaluations"]) == 4
    assert "It costs 5 euros." in shown["prompt"][-1]["content"]


def test_rubrics_show_prints_what_an_endpoint_is_sent(deployment: Deployment) -> None:
    shown = json.loads(deployment.run("rubrics", "show", "relevance", "--json").stdout)
    (rubric,) = [one for one in load_rubrics() if one.name == "relevance"]
    for unsupported in ((), ("json_schema",)):
        with FakeJudgeServer(unsupported=unsupported) as server:
            ask(server.base_url, [rubric])
            sent = server.requests[-1]["messages"][0]["content"]
        in_words = f"\n\n{shown['schema_in_words']}" if unsupported else ""
        assert sent == shown["messages"][0]["content"] + in_words
    printed = deployment.run("rubrics", "show", "relevance").stdout.decode()
    assert "for an endpoint that takes none" in printed
    assert '"level":1|2|3|4|5' in printed


def test_status_shows_the_queue_the_workers_and_the_gauges(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    deployment.enqueue(30)
    deployment.drain(worker)
    told = json.loads(deployment.run("status", "--json").stdout)
    assert told["queue"]["records"] == 0
    assert len(told["workers"]) == 1
    assert {r["rubric"]: r["scored"] + r["failed"] + r["not_applicable"] for r in told["rows"]} == dict.fromkeys(
        ("faithfulness", "relevance", "safety", "completeness"), 30
    )
    text = deployment.run("status").stdout.decode()
    assert "0 records pending" in text
    assert "faithfulness" in text


def test_doctor_finds_nothing_wrong_and_says_what_is(deployment: Deployment) -> None:
    told = json.loads(deployment.run("doctor", "--json").stdout)
    assert {finding["state"] for finding in told} <= {"ok", "warning"}
    deployment.settings |= {"judge": "openai", "judge_base_url": "http://127.0.0.1:9/v1", "judge_api_key": "k"}
    deployment.settings["rubrics"] = "/nowhere.yaml"
    done = deployment.run("doctor", "--json", check=False)
    assert done.returncode == 1
    assert [f["check"] for f in json.loads(done.stdout) if f["state"] == "wrong"] == ["rubrics"]
    del deployment.settings["rubrics"]
    done = deployment.run("doctor", "--json", check=False)
    (wrong,) = [f for f in json.loads(done.stdout) if f["state"] == "wrong"]
    assert wrong["check"] == "judge"
    assert "ASSAY_JUDGE_BASE_URL" in wrong["mend"]


def test_doctor_names_a_redis_that_would_lose_the_queue(deployment: Deployment) -> None:
    import redis

    client = redis.Redis.from_url(deployment.redis.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    client.close()
    done = deployment.run("doctor", "--no-judge", "--json", check=False)
    assert done.returncode == 1
    wrong = [f["message"] for f in json.loads(done.stdout) if f["state"] == "wrong"]
    assert any("append-only" in message for message in wrong)
    assert any("allkeys-lru" in message for message in wrong)


def test_a_dead_letter_is_shown_mended_and_replayed(deployment: Deployment, tmp_path: Path) -> None:
    worker = deployment.start_worker()
    bad = record(1).to_json().replace('"app":"shop"', '"app":5')
    deployment.queue.push(
        b'{"schema_version":1,"batch_id":"b","enqueued_at":1,"records":[' + bad.encode() + b"]}",
        batch_id="b",
        records=1,
        enqueued_at=1.0,
    )
    deployment.drain(worker)
    (letter,) = json.loads(deployment.run("dead", "list", "--json").stdout)
    assert letter["reason"] == "invalid"
    assert "app" in letter["message"]
    assert b"invalid" in deployment.run("dead", "list").stdout
    refused = deployment.run("dead", "replay", letter["dead_id"], check=False)
    assert refused.returncode == 2
    shown = deployment.run("dead", "show", letter["dead_id"][:8]).stdout
    assert json.loads(shown) == json.loads(bad)
    (tmp_path / "mended.json").write_bytes(shown.replace(b'"app":5', b'"app":"shop"'))
    deployment.run("dead", "replay", letter["dead_id"], "--payload", "mended.json")
    deployment.drain(worker)
    assert deployment.record_rows() == 1
    assert b"No dead letters" in deployment.run("dead", "list").stdout


def test_a_dead_letter_steers_no_terminal_and_is_whole_in_a_pipe(deployment: Deployment) -> None:
    hostile = b'{"\x1b]0;title\x07": 1}\xff'
    letter = DeadLetter(dead_id="d1", reason="invalid", message="\x1b[2J is no field", payload=hostile)
    deployment.store.commit([], [], [letter])
    assert deployment.run("dead", "show", "d1").stdout == hostile + b"\n"
    assert json.loads(deployment.run("dead", "show", "d1", "--json").stdout)["message"] == letter.message
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "assay", "dead", "show", "d1"],
            env=deployment.environment | {"NO_COLOR": "1", "TERM": "dumb"},
            cwd=deployment.directory,
            stdout=theirs,
            stderr=theirs,
            check=True,
        )
        shown = os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"title" in shown
    assert b"is no field" in shown
    assert not set(shown) & set(b"\x1b\x07")


def test_a_letter_over_the_bound_is_replayed_once_the_bound_is_raised(deployment: Deployment) -> None:
    payload = record(1, output="x" * 1_200_000).to_json().encode()
    letter = DeadLetter(dead_id="d" * 32, reason="too_large", message="synthetic", payload=payload)
    deployment.store.commit([], [], [letter])
    refused = deployment.run("dead", "replay", "--all", check=False)
    assert (refused.returncode, deployment.queue.depth().records) == (2, 0)
    deployment.settings |= {"max_record_bytes": 2_000_000}
    assert deployment.run("dead", "replay", "--all").stdout == b"1 of 1 back on the queue.\n"
    assert deployment.queue.depth().records == 1


def test_a_check_of_rubrics_shows_who_looks_first(deployment: Deployment) -> None:
    file = deployment.directory / "faithfulness.yaml"
    shipped = (SHIPPED / "faithfulness.yaml").read_text()
    file.write_text(shipped)
    assert b"after" not in deployment.run("rubrics", "check", str(file)).stdout
    file.write_text(f"{shipped}cascade: {{first: lexical, share: 0.3}}\n")
    assert b"together, after lexical: 30% of the rest" in deployment.run("rubrics", "check", str(file)).stdout


def test_purge_says_what_it_deleted(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    deployment.enqueue(5)
    deployment.drain(worker)
    deployment.settings |= {"keep_payload_days": 0}
    assert json.loads(deployment.run("purge", "--json").stdout)["payloads"] == 5


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["enqueue", "nowhere.jsonl"], {}, "nowhere.jsonl: No such file"),
        (["enqueue", "-", "--map", "x"], {}, "NAME=VALUE"),
        (["status"], {"ASSAY_CONCURRENCY": "many"}, "ASSAY_CONCURRENCY"),
        (["worker"], {"ASSAY_REDIS_URL": "localhost"}, "ASSAY_REDIS_URL"),
        (["status"], {"ASSAY_DATABASE_URL": "mysql://x"}, "mysql"),
        (["rubrics", "show", "kindness"], {}, "faithfulness"),
        (["status", "--window", "7"], {}, "window"),
        (["dead", "replay"], {}, "--all"),
        (["dead", "list", "--reason", "unauthorised"], {}, "did you mean unauthorized?"),
        (["dead", "replay", "--reason", "too large"], {}, "did you mean too_large?"),
        (["outbox", "list", "--sink", "phonix"], {}, "did you mean phoenix?"),
        (["enqueue", "/dev/null"], {}, "/dev/null: has no record"),
        (["dead", "show", "zz"], {}, "zz"),
        (
            ["dead", "list", "--lmit", "3"],
            {},
            "No such option: --lmit (Possible options: --limit); see assay dead list",
        ),
        (["dead", "list", "--limit", "few"], {}, "'--limit'"),
        (["judge"], {}, "Missing argument 'file'; see assay judge --help"),
        (["statsu"], {}, "No such command 'statsu'. Did you mean 'status'? see assay --help"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    deployment: Deployment, arguments: list[str], environment: dict[str, str], told: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "assay", *arguments],
        env=deployment.environment | environment,
        capture_output=True,
        text=True,
        cwd=deployment.directory,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, done
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [["worker"], ["exporter"], ["status"], ["purge"]])
def test_a_database_that_is_not_migrated_says_so(deployment: Deployment, tmp_path: Path, arguments: list[str]) -> None:
    deployment.settings = {}
    environment = deployment.environment | {"ASSAY_DATABASE_URL": f"sqlite:///{tmp_path}/other.db"}
    done = subprocess.run(
        [sys.executable, "-m", "assay", *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "assay db upgrade" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    subprocess.run([sys.executable, "-m", "assay", "db", "upgrade"], env=environment, check=True, cwd=tmp_path)


def test_settings_come_from_a_directory_of_secrets_as_containers_mount_it(tmp_path: Path) -> None:
    secrets = tmp_path / "run secrets"
    secrets.mkdir()
    (secrets / "assay_database_url").write_text(f"sqlite:///{tmp_path}/secret.db\n")
    assay(tmp_path, "db", "upgrade", ASSAY_SECRETS_DIR=str(secrets), code=0)
    assert (tmp_path / "secret.db").exists()
    assert assay(tmp_path, "dead", "list", ASSAY_SECRETS_DIR=str(secrets), code=0).stdout == "No dead letters.\n"
    # The environment wins, and what is no directory is told of.
    said = assay(tmp_path, "dead", "list", ASSAY_SECRETS_DIR=str(secrets), ASSAY_DATABASE_URL="sqlite:///x.db", code=1)
    assert "x.db" in said.stderr
    said = assay(tmp_path, "dead", "list", ASSAY_SECRETS_DIR=str(secrets / "nowhere"), code=2)
    assert said.stderr.startswith("error: ASSAY_SECRETS_DIR: ")


@pytest.mark.parametrize("absent", [{"typer", "pydantic", "celery", "sqlalchemy"}, {"sqlalchemy"}], ids=sorted)
def test_without_the_worker_extra_the_command_names_it(absent: set[str]) -> None:
    """A venv with the client alone, beside which other libraries may have brought some of what commands need."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from assay.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "dead", "list"],
        capture_output=True,
        text=True,
        env=clean_environment(PYTHONPATH=""),
    )
    assert done.returncode == 2
    assert "assay[worker]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_key_encrypts_what_was_stored_in_plain(deployment: Deployment) -> None:
    deployment.settings["judge"] = "rules"
    worker = deployment.start_worker()
    deployment.enqueue(3)
    deployment.drain(worker)
    plain = deployment.store.payloads(["record-1"])
    assert "item 1" in plain["record-1"]
    key = deployment.run("db", "new-key").stdout.decode().strip()
    deployment.settings["payload_keys"] = key
    told = deployment.run("db", "rekey").stdout.decode()
    assert "payloads" in told
    done = deployment.run("db", "new-key").stdout.decode().strip()
    assert done != key
    deployment.settings["payload_keys"] = done
    found = json.loads(deployment.run("doctor", "--json", "--no-judge", check=False).stdout)
    wrong = [finding["mend"] for finding in found if finding["state"] == "wrong"]
    assert any("ASSAY_PAYLOAD_KEYS" in mend for mend in wrong)
    deployment.settings["payload_keys"] = f"{done},{key}"
    found = json.loads(deployment.run("doctor", "--json", "--no-judge", check=False).stdout)
    assert not any("ASSAY_PAYLOAD_KEYS" in finding["mend"] for finding in found)
