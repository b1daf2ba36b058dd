"""Secrets stay where they were put: planted wherever a user can, looked for in everything that a whole run writes.

One run of all parts on real servers. The judge and the sinks quote whatever they are sent when they refuse it, a bug is
planted in the worker, passwords are wrong, settings are mistyped; all at log level debug.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import urllib.error
import urllib.request
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from assay.cli import run as run_command
from assay.client import Client
from assay.embedded import RedisServer
from assay.store import Store
from assay.testing import FakeJudgeServer
from deployment import Deployment, end, wait_until
from planted import Search, planted, secret
from servers import PostgresServer
from sink_server import Answer, Request, SinkServer
from trace_servers import a_span, otlp_json

pytestmark = pytest.mark.e2e

_KEYS = ["key_old", "key_new"]

#: What the settings hold.
SECRETS = {
    name: secret(name, prefix)
    for name, prefix in {
        "judge_key": "sk-",
        "judge_password": "",
        "redis": "",
        "redis_wrong": "",
        "database": "",
        "database_wrong": "",
        "broker": "",
        "report_address": "",
        "collect_token": "",
        "metrics_token": "",
        "wrong_token": "",
        "webhook_secret": "",
        "webhook_password": "",
        "langfuse": "sk-lf-",
        "phoenix": "",
        "otel": "",
        "salt": "",
        "user_id": "",
    }.items()
} | {name: urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode() for name in _KEYS}

#: What stands in records, and redaction takes out.
REDACTED = {
    "text_key": secret("text_key", "sk-proj-").replace("!", "-"),
    "text_password": secret("text_password"),
    "text_token": secret("text_token").replace("!", ""),
    "text_email": "planted.synthetic.4821@example.org",
    "text_phone": "+44 20 7946 0958",
    "text_card": "4012 8888 8888 1881",
}

#: An ordinary text of a record: it takes the same ways as a secret in one would, and shows that the search sees them.
TEXT = secret("an ordinary text").replace("!", "ordinary")
#: What an app sends that redacts nothing.
UNREDACTED = secret("unredacted")
#: A name, which anybody may see.
NAME = secret("name").replace("!", "")

#: kind of place -> what has to be there. Everything else that is planted must not, and no kind but these may hold any.
ALLOWED = {
    # Whoever must check a credential is shown it, and no other.
    "request to the judge": ["judge_key", "text"],
    "request to services": ["name"],
    "request of a doctor to the judge": ["judge_password"],
    "request to webhook": ["webhook_password", "text", "name"],
    "request to langfuse": ["langfuse", "text", "name"],
    "request to phoenix": ["phoenix", "text", "name"],
    "request to otel": ["otel", "text", "name"],
    # Records wait in Redis as their app sent them, and its append-only file holds all that ever did.
    "file of Redis": ["text", "name", "unredacted"],
    # Commands that are asked for a text.
    "command that shows a text": ["text", "name", "unredacted"],
    "file of rejected rows": ["text", "name", "unredacted"],
    "report": ["name"],
    "file of the sink": ["text", "name"],
    # Texts are encrypted in the database, and opened by the keys.
    "database, opened": ["text", "name"],
    "database": ["name"],
    "metrics": ["name"],
    "command": ["name"],
    "log": ["name"],
}

#: A bug of the worker, with all that is secret at hand in its local variables.
BUG = """
import os
import sys
from assay.cli import run
from assay.judges._openai import OpenAIJudge

asked = OpenAIJudge.judge

async def judge(self, record, rubrics):
    everything = dict(os.environ), self.__dict__, record.to_json()
    if "PLANTED-BUG" in record.to_json():
        try:
            {}[len(everything)]
        except KeyError as error:
            raise RuntimeError("a planted bug") from error
    return await asked(self, record, rubrics)

OpenAIJudge.judge = judge
sys.exit(run())
"""


def quoting(request: Request) -> str:
    """All that a request said, as somebody may answer who is not careful; what is secret comes first."""
    body = request.body.decode(errors="replace")
    place = max(0, body.find(TEXT) - 10)
    given = " ".join(value for name, value in request.headers.items() if "auth" in name or "key" in name)
    return f"you sent {given} {body[place : place + 120]} {json.dumps(request.headers)} {body}"


def a_sink(request: Request) -> Answer:
    """Each refuses in its own way, and quotes."""
    said, json_type = quoting(request), {"content-type": "application/json"}
    if request.path.startswith("/otel"):
        refusal = {"rejectedSpans": "1", "rejectedLogRecords": "1", "errorMessage": said}
        return 200, json_type, json.dumps({"partialSuccess": refusal}).encode()
    if request.path.startswith("/langfuse"):
        return 207, json_type, json.dumps({"accepted": 0, "rejected": 1, "message": said}).encode()
    status = {"/webhook": 422, "/phoenix": 400}.get(request.path[:8], 401)
    return status, json_type, json.dumps({"error": said}).encode()


def a_judge(server: FakeJudgeServer) -> Callable[[Request], Answer]:
    """In front of the judge: some requests are refused, and quoted."""

    def answer(request: Request) -> Answer:
        said, body = quoting(request), request.body.decode()
        if "PLANTED-400" in body:
            error = {"message": said, "code": request.headers.get("authorization"), "type": "invalid_request_error"}
            return 400, {}, json.dumps({"error": error}).encode()
        if "PLANTED-401" in body + request.path:
            return 401, {}, said.encode()
        if "PLANTED-307" in body:
            return 307, {"location": f"/login?{request.headers.get('authorization')}"}, b""
        asked = urllib.request.Request(
            server.base_url.removesuffix("/v1") + request.path,
            request.body,
            {k: v for k, v in request.headers.items() if k in {"authorization", "content-type"}},
        )
        with urllib.request.urlopen(asked, timeout=30) as answered:
            return answered.status, {"content-type": "application/json"}, answered.read()

    return answer


def get(url: str, token: str | None = None, data: bytes | None = None) -> tuple[int, bytes]:
    """Status, and the whole answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, answer.read() + str(answer.headers).encode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read() + str(error.headers).encode()


def close_connections() -> None:
    """A command ends with its process; here its connections stay open until they are found."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


class Whole:
    """One deployment, and the search through what it writes."""

    def __init__(self, here: Deployment, search: Search, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
        self.here, self.search, self._patch, self._capfd = here, search, monkeypatch, capfd

    def command(self, *arguments: str, kind: str = "command", fails: bool | None = None, **settings: str) -> str:
        """What a command prints, in this process, with these settings changed; what it logs is looked at too."""
        with self._patch.context() as patch:
            for name in list(os.environ):
                if name.startswith(("ASSAY_", "OPENAI_")):
                    patch.delenv(name)
            changed = {f"ASSAY_{name.upper()}": value for name, value in settings.items()}
            for name, value in (self.here.environment | changed).items():
                patch.setenv(name, value)
            patch.setattr("sys.argv", ["assay", *arguments])
            self._capfd.readouterr()
            code = run_command()
            printed, logged = self._capfd.readouterr()
        said = printed + logged
        close_connections()
        if fails is not None:
            assert (code != 0) is fails, said
        assert "Traceback" not in said, said
        self.search.look(kind, f"assay {' '.join(arguments)} {list(settings)}", said)
        return str(printed)

    def send(self, url: str, *words: str) -> None:
        """A record for each word, from the app's own client with its redaction, with secrets in every text."""
        r = REDACTED
        client = Client(NAME, redis_url=url, user_id_salt=SECRETS["salt"])
        for number, word in enumerate(words):
            client.record(
                record_id=f"{NAME}-{word}-{number}",
                trace_id=hashlib.sha256(f"{word}{number}".encode()).hexdigest()[:32],
                span_id="0123456789abcdef",
                input=[
                    {"role": "user", "content": f"{word} {TEXT} My password is {r['text_password']}, what now?"},
                    {"role": "user", "content": f"Call {r['text_phone']} or write to {r['text_email']}"},
                ],
                output=f"{TEXT} The key is {r['text_key']} and the card {r['text_card']}.",
                contexts=[f"{TEXT} Authorization: Bearer {r['text_token']}", {"text": f"mail {r['text_email']}"}],
                reference=f"{TEXT} postgresql://shop:{r['text_password']}@db.example/shop",
                route=f"/ask?api_key={r['text_key']}",
                cohort={"tier": f"gold {r['text_key']}"},
                user_id=SECRETS["user_id"],
                tool_events=[{"name": "http", "arguments": json.dumps({"api_key": r["text_key"]}), "result": TEXT}],
                feedback={"thumb": "down", "comment": f"mine is {r['text_email']}"},
                metadata={"api_key": r["text_password"], "nested": {"headers": [f"token={r['text_token']}"]}},
            )
        assert client.flush(20)
        client.close()

    def broken(self) -> None:
        """Batches that cannot be read, of an app that redacts nothing."""
        record = {"record_id": f"{NAME}-bad", "app": NAME, "input": UNREDACTED, "output": TEXT}
        bad = [
            json.dumps({"schema_version": 1, "batch_id": "b1", "enqueued_at": 1.0, "records": [given]})
            for given in (
                {**record, "timestamp": UNREDACTED},
                {**record, "timestamp": "2026-01-01T00:00:00Z", "sampling": {"probability": UNREDACTED}},
                {**record, "not a field": UNREDACTED},
            )
        ] + [json.dumps({"records": [record]})[:-3]]
        for number, text in enumerate(bad):
            payload = text.replace('"b1"', f'"bad{number}"').encode()
            self.here.queue.push(payload, batch_id=f"bad{number}", records=1, enqueued_at=1.0)


@pytest.fixture
def postgres(_shared_postgres: PostgresServer) -> PostgresServer:
    return _shared_postgres


@pytest.fixture
def password_url(postgres: PostgresServer) -> str:
    return postgres.require_password(postgres.create_database(), SECRETS["database"])


def test_what_is_secret_is_in_no_output_of_a_whole_run(
    tmp_path: Path,
    password_url: str,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    values = SECRETS | REDACTED | {"text": TEXT, "unredacted": UNREDACTED, "name": NAME}
    search = Search(planted(values, ALLOWED))
    (tmp_path / "planted_bug.py").write_text(BUG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)
    with (
        FakeJudgeServer(api_key=SECRETS["judge_key"]) as model,
        SinkServer(a_judge(model)) as judge,
        SinkServer(a_sink) as sinks,
        RedisServer(tmp_path / "redis", password=SECRETS["redis"]) as redis,
        Deployment(tmp_path, password_url, redis_url=redis.url, **_settings(judge.url, sinks.url)) as here,
    ):
        whole = Whole(here, search, monkeypatch, capfd)
        _run(whole, sinks)
        _commands(whole)
        _wrong_settings(whole, judge.url)
        _look_at_the_database(whole)
    _look_at_files(search, tmp_path, postgres)
    search.look("log", "of the app's client and of commands", caplog.text)
    for request in judge.requests:
        kind = "request of a doctor to the judge" if "PLANTED" in request.path else "request to the judge"
        search.look(kind, request.path, f"{request.headers} {request.body.decode()}")
    for request in sinks.requests:
        name = request.path.split("/")[1]
        shown = f"{request.headers} {request.body.decode(errors='replace')}"
        search.look(f"request to {name}", request.path.replace(SECRETS["report_address"], ""), shown)
    assert not search.leaks, "\n\n".join(search.leaks)
    assert not search.missing(), "allowed there, but not found"


def _settings(judge_url: str, sinks_url: str) -> dict[str, object]:
    s = SECRETS
    return {
        "judge": "openai",
        "judge_model": "gpt-5-mini",
        "judge_base_url": f"{judge_url}/v1",
        "judge_api_key": s["judge_key"],
        "log_level": "debug",
        "log_format": "json",
        "cohort_labels": "tier,route",
        "payload_keys": f"{s['key_new']},{s['key_old']}",
        "metrics_token": s["metrics_token"],
        "collect_token": s["collect_token"],
        "worker_metrics_port": 0,
        "budget_usd_per_day": 5,
        "max_attempts": 1,
        "max_deliveries": 2,
        "exporter_port": 1,
        "report_webhook": f"{sinks_url}/services/{s['report_address']}",
        "sinks": "webhook,langfuse,phoenix,otel,jsonl",
        "sink_fields": "raw,label,explanation,message,cohort,session,input,output",
        "sink_webhook_url": f"{sinks_url}/webhook".replace("://", f"://user:{s['webhook_password']}@"),
        "sink_webhook_secret": s["webhook_secret"],
        "sink_langfuse_url": f"{sinks_url}/langfuse",
        "sink_langfuse_public_key": "pk-lf-public",
        "sink_langfuse_secret_key": s["langfuse"],
        "sink_phoenix_url": f"{sinks_url}/phoenix",
        "sink_phoenix_api_key": s["phoenix"],
        "sink_otel_url": f"{sinks_url}/otel",
        "sink_otel_headers": f"authorization=Bearer {s['otel']}",
        "sink_otel_encoding": "json",
        "sink_jsonl_path": "evaluations.jsonl",
    }


@contextlib.contextmanager
def _changed(here: Deployment, **settings: object) -> Iterator[None]:
    """For the processes that are started meanwhile."""
    before, database_url = dict(here.settings), here.database_url
    here.database_url = str(settings.pop("database_url", database_url))
    here.settings |= settings
    yield
    here.settings.clear()
    here.settings |= before
    here.database_url = database_url


def _log(process: Any) -> str:
    return cast("Path", process.log).read_text()


def _run(whole: Whole, sinks: SinkServer) -> None:
    """Everything that runs for long, with what it is sent."""
    here, s = whole.here, SECRETS
    url = str(here.settings["redis_url"])
    whole.send(url, "fine", "fine", "PLANTED-400", "PLANTED-401", "PLANTED-307", "PLANTED-BUG")
    whole.broken()
    worker = here.start("worker", module="planted_bug")
    exporter = here.start("exporter", "--port", "0")
    collector = here.start("collect", "--port", "0")
    away = {"log_format": "console", "redis_url": url.replace(s["redis"], s["redis_wrong"])}
    with _changed(here, **away):
        lost = here.start("worker")
    with _changed(here, **away, database_url=here.database_url.replace(s["database"], s["database_wrong"])):
        blind = here.start("exporter", "--port", "0")
    for process in (exporter, blind):
        wait_until(lambda p=process: "/metrics" in _log(p), process, seconds=60)
    wait_until(lambda: "/v1/traces" in _log(collector), collector, seconds=60)
    traces = next(word for word in _log(collector).split() if word.endswith("/v1/traces"))
    _scrape(whole, exporter, blind)
    texts = {"gen_ai.prompt.0.content": f"{TEXT} {REDACTED['text_key']}", "gen_ai.completion.0.content": TEXT}
    span = otlp_json(a_span("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", **texts))
    for token, body in ((None, span), (s["wrong_token"], span), (s["collect_token"], span)):
        whole.search.look("answer", "of the collector", get(traces, token, json.dumps(body).encode())[1])
    wrong = {"resourceSpans": [{"scopeSpans": UNREDACTED}, UNREDACTED]}
    whole.search.look("answer", "of the collector", get(traces, s["collect_token"], json.dumps(wrong).encode())[1])
    here.drain(worker)
    names = {"webhook", "langfuse", "phoenix", "otel"}
    wait_until(lambda: {row.sink for row in here.store.outbox(state="rejected")} >= names, worker, seconds=60)
    wait_until(lambda: any(r.path.startswith("/services") for r in sinks.requests), worker, seconds=60)
    wait_until(lambda: "WRONGPASS" in _log(lost) or "away" in _log(lost), lost, seconds=60)
    for process in (worker, exporter, collector, lost, blind):
        command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        whole.search.look("command line", str(process.args), command_line)
    whole.command("status", "--json")
    for process in (worker, exporter, collector, lost, blind):
        end(process)


def _scrape(whole: Whole, exporter: Any, blind: Any) -> None:
    s = SECRETS
    url, blind_url = (next(w for w in _log(p).split() if w.endswith("/metrics")) for p in (exporter, blind))
    for token in (None, s["wrong_token"]):
        status, said = get(url, token)
        assert status == 401
        whole.search.look("answer", "of the exporter", said)
    # Where a token does not belong.
    whole.search.look("answer", "of the exporter", get(f"{url}?token={s['metrics_token']}")[1])
    for place in (url, blind_url):
        status, said = get(place, s["metrics_token"])
        assert status == 200
        whole.search.look("metrics", place, said)


def _commands(whole: Whole) -> None:
    """Everything that a person asks."""
    command = whole.command
    rows = [
        {"record_id": f"{NAME}-f1", "app": NAME, "input": TEXT, "output": "5 euros."},
        {"record_id": f"{NAME}-f2", "input": UNREDACTED, "sampling": {"probability": UNREDACTED}, "output": TEXT},
        {"record_id": f"{NAME}-f3", "timestamp": UNREDACTED},
        {"record_id": f"{NAME}-f4", "not a field": UNREDACTED},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path("rows.jsonl").write_text(f"{lines}{{ {UNREDACTED}\n")
    command("enqueue", "rows.jsonl", fails=True)
    letters = json.loads(command("dead", "list", "--json"))
    assert {letter["reason"] for letter in letters} >= {"invalid", "undecodable"}
    command("dead", "list")
    for letter in letters:
        command("dead", "show", letter["dead_id"], kind="command that shows a text")
    command("dead", "replay", "--reason", "invalid", fails=True)
    owed = json.loads(command("outbox", "list", "--json"))["rows"]
    assert sum("you sent" in (row["reason"] or "") for row in owed) >= 4, "the sinks' refusals are told"
    command("outbox", "list")
    for row in {row["sink"]: row for row in owed}.values():
        command("outbox", "show", row["evaluation_id"])
    for arguments in (
        ["status"],
        ["doctor", "--json"],
        ["budget"],
        ["changes", "list"],
        ["compare", "--by", "tier"],
        ["rubrics", "status"],
        ["rubrics", "show", "faithfulness"],
        ["alerts", "generate", "--out", "alerts"],
        ["db", "rekey"],
        ["labels", "queue"],
        ["worker", "--help"],
        ["collect", "--help"],
    ):
        command(*arguments)
    command("defects", "list", kind="command that shows a text")
    command("report", "--out", "report.html", "--send", fails=True)
    for word in ("PLANTED-400", "PLANTED-401", "PLANTED-307"):
        Path("one.json").write_text(json.dumps({"app": NAME, "input": f"{word} {TEXT}", "output": TEXT}))
        command("judge", "one.json", "--show-prompt", kind="command that shows a text", fails=True)
    Path("rubric.yaml").write_text(
        f"name: mine\njudge: {{engine: openai, base_url: 'http://u:{SECRETS['judge_password']}@127.0.0.1/v1'}}\n"
    )
    command("rubrics", "check", "rubric.yaml", fails=True)
    for source in ("langfuse", "phoenix"):
        command("pull", source, "--since", "1h", "--dry-run", fails=True)


def _wrong_settings(whole: Whole, judge_url: str) -> None:
    """Mistakes, and servers that do not know us."""
    s, here = SECRETS, whole.here
    wrong_redis = str(here.settings["redis_url"]).replace(s["redis"], s["redis_wrong"])
    for arguments in (["status"], ["doctor", "--json"], ["enqueue", "rows.jsonl"]):
        whole.command(*arguments, fails=True, redis_url=wrong_redis)
    whole.search.look("log", "of the client", _client_warnings(wrong_redis))
    wrong_database = here.database_url.replace(s["database"], s["database_wrong"])
    for arguments in (["status"], ["doctor", "--json"], ["dead", "list"], ["db", "upgrade"]):
        whole.command(*arguments, fails=True, database_url=wrong_database)
    for name, value in {
        "redis_url": f"redsi://:{s['redis']}@127.0.0.1:1/0",
        "broker_url": f"amqp://user:{s['broker']}@127.0.0.1:1//",
        "database_url": f"postgresql+psycopg://assay:{s['database']}@127.0.0.1:x/assay",
        "payload_keys": f"{s['key_old'][:30]},{s['key_new']}x",
        "judge_base_url": f"{judge_url.replace('://', '://user:' + s['judge_password'] + '@')}/PLANTED-401",
        "judge_api_key": f"{s['judge_key']}\u00e9",
        "report_webhook": f"slack/{s['report_address']}",
        "metrics_token": f"{s['metrics_token']}\u00e9 {s['metrics_token']}",
        "collect_token": f"{s['collect_token']}\n{s['collect_token']}",
        "sink_webhook_url": f"htp://user:{s['webhook_password']}@127.0.0.1/",
        "sink_webhook_secret": f"whsec_{s['webhook_secret']}",
        "sink_otel_headers": f"authorization Bearer {s['otel']}",
        "sink_phoenix_api_key": f"{s['phoenix']}\u00e9",
        "sink_langfuse_secret_key": f"{s['langfuse']}\n{s['langfuse']}",
    }.items():
        asked = [] if name.startswith("judge") else ["--no-judge"]
        whole.command("doctor", "--json", *asked, **{name: value})
    for name, value in {
        "redis_url": f"redis://:{s['redis']}@127.0.0.1:x/0",
        "broker_url": f"amqpp://user:{s['broker']}@127.0.0.1/",
        "database_url": f"postgres+nothing://assay:{s['database']}@127.0.0.1/x",
        "judge_base_url": f"htp://user:{s['judge_password']}@127.0.0.1/v1",
        "judge_api_key": f"{s['judge_key']}\n{s['judge_key']}",
    }.items():
        whole.command("status", **{name: value})


def _client_warnings(url: str) -> str:
    """What the app's client does where it is refused; it logs, which is looked at in the end."""
    client = Client(NAME, redis_url=url, close_seconds=0.1)
    client.record(input=TEXT, output=f"key {REDACTED['text_key']}")
    client.flush(1)
    said = repr((client, client.stats()))
    client.close()
    return said


def _look_at_the_database(whole: Whole) -> None:
    """All text of all columns of all tables; then a payload, opened."""
    import sqlalchemy as sa

    here = whole.here
    engine = sa.create_engine(here.database_url)
    tables = sa.MetaData()
    filled = set()
    with engine.connect() as connection:
        tables.reflect(connection)
        for table in tables.sorted_tables:
            rows = connection.execute(sa.select(table)).mappings().all()
            filled |= {table.name} if rows else set()
            for column in table.columns:
                whole.search.look("database", f"{table.name}.{column.name}", "\n".join(_texts(rows, column.name)))
    engine.dispose()
    assert filled >= {"records", "payloads", "evaluations", "dead_letters", "outbox", "rubric_versions", "instruments"}
    keys = [SECRETS["key_new"], SECRETS["key_old"]]
    with Store(here.database_url, payload_keys=keys) as store:
        whole.search.look("database, opened", "payloads", repr(store.payloads([f"{NAME}-fine-0"])))


def _texts(rows: Iterable[Any], column: str) -> Iterator[str]:
    for row in rows:
        value = row[column]
        is_bytes = isinstance(value, bytes | memoryview)
        yield bytes(value).decode(errors="backslashreplace") if is_bytes else str(value)


def _look_at_files(search: Search, directory: Path, postgres: PostgresServer) -> None:
    """Everything below the data directory, in which all processes ran."""
    for file in sorted(directory.rglob("*")):
        if not file.is_file() or file.name in {"planted_bug.py", "rows.jsonl", "one.json", "rubric.yaml"}:
            continue
        name = str(file.relative_to(directory))
        kind = {
            ".aof": "file of Redis",
            ".html": "report",
            ".jsonl": "file of the sink",
            ".rdb": "file of Redis",
        }.get(file.suffix, "log" if file.suffix == ".log" else "file")
        search.look("file of rejected rows" if "rejected" in name else kind, name, file.read_bytes())
    search.look("log of PostgreSQL", "", postgres.log.read_bytes())
