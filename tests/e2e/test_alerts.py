"""From an interaction to a page: real workers, exporters, Prometheus, Alertmanager, and a webhook that is told.

Two deployments live at once, for two minutes and a half, and the tests look at what was seen. One serves a day on which
the product gets worse and, at the same time, the judge of another rubric harsher; both are mended. The other is given
old records, goes dark when its worker stops, and comes back with another judge. Rules and waits are the shipped ones at
a twentieth of their time.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from assay import wiring
from assay.alerts import AlertPolicy, rule_files
from assay.client import Client
from assay.enqueue import enqueue
from assay.pipeline import Judges, evaluate
from assay.records import Record, now
from assay.rubrics import load_rubrics
from assay.settings import Settings
from assay.testing import Ask, FakeJudgeServer
from deployment import Deployment, end, samples
from prometheus import Alertmanager, Notification, Prometheus, Webhook, wait_for
from servers import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
PACE = 1 / 20
TOKEN = "synthetic-token"
RUBRIC = """\
name: {name}
version: "1"
title: {name}
instructions: Is the answer good?
scale:
  type: binary
  pass_when: It is.
  fail_when: It is not.
pass_threshold: 1.0
objective: 0.9
"""
#: Seconds from a bad interaction to the page, at most: its minute closes (60), the detector looks (1), the exporter
#: (1), Prometheus scrapes (1) and evaluates (1), `for` (5 m at the pace: 15), group_wait (1).
PROMISED = 60 + 1 + 1 + 1 + 1 + 300 * PACE + 1
#: What two busy cores may add: processes that wait for their turn.
BUSY = 20.0
#: The same of `resolved`: no `for`, and group_interval (2) for group_wait.
PROMISED_RESOLVED = 60 + 1 + 1 + 1 + 1 + 2


class Judge:
    """Of manners fails what is rude, of tone what is shrill, once harsher also what is curt; as `harsh`, everything."""

    harsher = False

    def __call__(self, ask: Ask) -> dict[str, str]:
        bad = ("rude" if ask.rubric == "manners" else "shrill") in ask.text
        if ask.rubric == "tone" and self.harsher:
            bad = bad or "curt" in ask.text
        return {
            "explanation": "synthetic",
            "verdict": "fail" if bad or ask.request["model"] == "harsh" else "pass",
        }


def answers(count: int, start: datetime, *, step: float = 0.0, bad: bool = False, app: str = "shop") -> list[Record]:
    """One in twenty fails both rubrics; of bad ones every other one is rude, and curt, which only some judge minds."""

    def manner(n: int) -> str:
        if n % 20 == 1:
            return "rude and shrill"
        return "rude but curt" if bad and n % 2 == 0 else "kind"

    return [
        Record(
            record_id=f"{app}-{start:%Y%m%d%H%M%S%f}-{n}",
            timestamp=start + timedelta(seconds=step * n),
            app=app,
            input=f"Question {n}?",
            output=f"A {manner(n)} answer.",
        )
        for n in range(count)
    ]


def write_files(directory: Path) -> str:
    """Two rubrics, and a canary for each; returns ASSAY_CANARY. All synthetic."""
    (directory / "rubrics").mkdir()
    paths = []
    for name, bad in (("manners", "rude"), ("tone", "shrill")):
        (directory / "rubrics" / f"{name}.yaml").write_text(RUBRIC.format(name=name))
        path = directory / f"canary-{name}.jsonl"
        lines: list[dict[str, Any]] = [{"label_file": 1, "rubric": name, "annotators": "author", "synthetic": True}]
        for n in range(60):
            manner = "rude and shrill" if n % 4 == 0 else "curt" if n % 4 == 1 else "kind"
            item = {"record_id": f"c{n}", "timestamp": "2026-01-15T12:00:00Z", "input": "?", "output": f"{manner} {n}"}
            lines.append({"record": item, "label": "fail" if bad in manner else "pass"})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(str(path))
    return ",".join(paths)


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with each of these replaced; none may be missing."""
    for old, new in changes.items():
        assert old in text, f"{old} is not in the shipped file any more"
        text = text.replace(old, new)
    return text


#: Waits of Alertmanager. Nothing else of its routes and inhibition is changed.
WAITS = {
    "group_wait: 30s": "group_wait: 1s",
    "group_interval: 5m": "group_interval: 2s",
    "group_wait: 10m": "group_wait: 1s",
}


def prometheus_config(rules: Path, alertmanager: str, targets: dict[str, str]) -> dict[str, Any]:
    """The shipped one, every second, with the addresses of this test."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert set(config) == {"global", "rule_files", "alerting", "scrape_configs"}
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    config["rule_files"] = [f"{rules}/*.yml"]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    assert [job["job_name"] for job in config["scrape_configs"]] == list(targets)
    config["scrape_configs"] = [
        {"job_name": name, "static_configs": [{"targets": [address]}]} for name, address in targets.items()
    ]
    return config


_COUNTERS = ("_total", "_bucket", "_count", "_sum", "_created", "_position_timestamp_seconds")


class Site:
    """A deployment that is watched: its servers, and the webhook that is told."""

    def __init__(self, directory: Path, *, windows: tuple[str, str, str], canary: bool, stack: ExitStack) -> None:
        directory.mkdir()
        self.judge = Judge()
        server = stack.enter_context(FakeJudgeServer(verdict=self.judge))
        canaries = write_files(directory)
        settings: dict[str, Any] = {
            "rubrics": directory / "rubrics",
            "judge": "openai",
            "judge_base_url": server.base_url,
            "judge_api_key": "synthetic",
            "judge_model": "fake",
            "judge_logprobs": "false",
            "windows": ",".join(windows),
            "change_settle_seconds": 0,
            "change_seconds": 1,
            "change_reference_records": 100,
            "change_recovery_records": 60,
            "canary_repeats": 2,
        }
        if canary:
            settings["canary"] = canaries
        self.running = stack.enter_context(Deployment(directory, f"sqlite:///{directory}/assay.db", **settings))
        self._learn(server.base_url)
        self._worker_port = free_port()
        self.worker = self.start_worker()
        self.metrics = self.running.start_exporter()
        self.webhook = Webhook()
        stack.callback(self.webhook.close)
        self.alertmanager = Alertmanager(directory / "alertmanager", self._alertmanager_config(directory))
        stack.callback(self.alertmanager.close)
        rules = directory / "rules"
        rules.mkdir()
        policy = AlertPolicy(pace=PACE, windows=windows)
        for name, text in rule_files(load_rubrics([directory / "rubrics"]), policy).items():
            (rules / name).write_text(text)
        targets = {
            "assay-exporter": urlsplit(self.metrics).netloc,
            "assay-worker": f"127.0.0.1:{self._worker_port}",
        }
        config = prometheus_config(rules, self.alertmanager.address, targets)
        self.started = time.time()
        self.prometheus = Prometheus(directory / "prometheus", {}, config=config)
        stack.callback(self.prometheus.close)

    def _learn(self, base_url: str) -> None:
        """What is usual: scored in the past, by the judge of the workers."""
        settings = Settings(
            _env_file=None,  # type: ignore[call-arg]
            judge="openai",
            judge_base_url=base_url,
            judge_api_key="synthetic",
            judge_model="fake",
            judge_logprobs=False,
        )
        rubrics = load_rubrics([self.running.directory / "rubrics"])
        records = answers(120, now() - timedelta(hours=20), step=540)

        async def score() -> list[Any]:
            judges = Judges.build(rubrics, wiring.judge_settings(settings))
            try:
                return await asyncio.gather(*(evaluate(record, rubrics, judges) for record in records))
            finally:
                await judges.aclose()

        scored = asyncio.run(score())
        self.running.store.commit([(r, r.to_json()) for r in records], [e for found in scored for e in found])

    def _alertmanager_config(self, directory: Path) -> str:
        token = directory / "token"
        token.write_text(TOKEN)
        addresses = {
            "http://pages.example:8080/assay": f"{self.webhook.url}/pages",
            "http://tickets.example:8080/assay": f"{self.webhook.url}/tickets",
            "http://notes.example:8080/assay": f"{self.webhook.url}/notes",
            "/run/secrets/assay_pages_token": str(token),
        }
        shipped = (ROOT / "deploy/alertmanager/webhook.yml").read_text()
        return replaced(shipped, WAITS | addresses)

    def start_worker(self) -> Any:
        return self.running.start_worker("--metrics-port", str(self._worker_port))

    def enqueue(self, records: Sequence[Record]) -> None:
        assert enqueue(records, self.running.queue) == len(records)

    def suppressed(self, alert: str, **labels: str) -> list[str]:
        """Names of the alerts that inhibit that one, as Alertmanager says; empty while nothing does."""
        wanted = {"alertname": alert, **labels}.items()
        alerts = self.alertmanager.get("alerts") or []
        found = {told["fingerprint"]: told for told in alerts}
        return [
            found[by]["labels"]["alertname"]
            for told in alerts
            if wanted <= told["labels"].items() and told["status"]["state"] == "suppressed"
            for by in told["status"]["inhibitedBy"]
        ]

    def holds(self, expression: str) -> bool:
        return bool(self.prometheus.query(expression))

    def gauges(self) -> dict[tuple[str, str], float]:
        """What the exporter shows of the present and of the detectors, but not its counters."""
        shown = ("assay_app_", "assay_pass_", "assay_score_", "assay_window_", "assay_change_", "assay_drift_")
        return {
            (name, json.dumps(labels, sort_keys=True)): value
            for name, labels, value in samples(self.metrics)
            if name.startswith(shown) and not name.endswith(_COUNTERS)
        }

    def late(self) -> dict[str, float]:
        """Records that came after their minute, by rubric."""
        name = "assay_change_late_records_total"
        return {labels["rubric"]: value for found, labels, value in samples(self.metrics) if found == name}


def in_one_minute(seconds: float = 10.0) -> None:
    """Wait, where the running minute ends before what follows is done."""
    left = 60 - time.time() % 60
    if left < seconds:
        time.sleep(left + 0.1)


# -- what happens


@dataclass(kw_only=True)
class Day:
    """What was seen on the day of the regression. Moments are epoch seconds."""

    site: Site
    began: float = 0.0
    mended: float = 0.0
    verdicts: set[tuple[str, str]] = field(default_factory=set)
    inhibited_by: list[str] = field(default_factory=list)


def live_through_a_regression(site: Site) -> Day:
    day = Day(site=site)
    store, webhook = site.running.store, site.webhook
    wait_for(lambda: [stream.phase for stream in store.change_streams()] == ["watching"] * 2, 60)
    wait_for(lambda: len(store.canaries(baselines=True)) == 2, 60)
    in_one_minute()
    day.began = time.time()
    site.judge.harsher = True
    site.enqueue(answers(120, now(), bad=True))
    wait_for(lambda: webhook.told("AssayQualityDrop", rubric="manners"), PROMISED + 60)
    wait_for(lambda: webhook.told("AssayJudgeChanged", rubric="tone"), 60)
    day.inhibited_by = wait_for(lambda: site.suppressed("AssayQualityDrop", rubric="tone"), 60)
    found = site.prometheus.query("assay_drift_verdict == 1")
    day.verdicts = {(labels["rubric"], labels["verdict"]) for labels, _ in found}
    in_one_minute()
    day.mended = time.time()
    site.judge.harsher = False
    site.enqueue(answers(150, now()))
    wait_for(lambda: webhook.told("AssayQualityDrop", "resolved", rubric="manners"), PROMISED_RESOLVED + 60)
    wait_for(lambda: not site.holds("assay_change_alarm == 1"), 60)
    return day


@dataclass(kw_only=True)
class Dark:
    """What was seen of the deployment that went dark. Moments are epoch seconds."""

    site: Site
    gauges_before: dict[tuple[str, str], float] = field(default_factory=dict)
    gauges_after: dict[tuple[str, str], float] = field(default_factory=dict)
    late_before: dict[str, float] = field(default_factory=dict)
    backfilled: float = 0.0
    stopped: float = 0.0
    gone: float = 0.0
    swapped: float = 0.0
    inhibited_by: list[str] = field(default_factory=list)


LIVE, OLD = 40, 200
_SCORES = 'assay_app_pass_ratio{rubric="manners", window="1m", judge="openai:fake"}'


def go_dark(site: Site) -> Dark:
    dark = Dark(site=site)
    running, store, webhook = site.running, site.running.store, site.webhook
    wait_for(lambda: [stream.phase for stream in store.change_streams()] == ["watching"] * 2, 60)
    in_one_minute()
    site.enqueue(answers(LIVE, now()))
    running.drain(site.worker)
    wait_for(lambda: site.holds(_SCORES), 30)
    dark.gauges_before, dark.late_before = site.gauges(), site.late()
    dark.backfilled = time.time()
    old = answers(OLD, now() - timedelta(days=3), step=60, bad=True)
    site.enqueue(old)
    running.drain(site.worker)
    wait_for(lambda: sum(site.late().values()) > sum(dark.late_before.values()), 30)
    # A scrape may be a second old, of when some of them still waited.
    wait_for(lambda: not any(n for (name, _), n in site.gauges().items() if name == "assay_window_pending_records"), 30)
    dark.gauges_after = site.gauges()
    # Longer than a page waits for, had any rule been struck.
    time.sleep(300 * PACE + 3)

    dark.stopped = time.time()
    assert end(site.worker) == 0
    for _ in range(3):
        site.enqueue(answers(10, now()))
        time.sleep(1)
    wait_for(lambda: webhook.told("AssayEvaluatorBlind"), 90)
    wait_for(lambda: not site.holds(_SCORES), 150)
    dark.gone = time.time()

    running.settings["judge_model"] = "harsh"
    dark.swapped = time.time()
    site.worker = site.start_worker()
    site.enqueue(answers(60, now()))
    wait_for(lambda: webhook.told("AssayJudgeChanged"), 60)
    dark.inhibited_by = wait_for(lambda: site.suppressed("AssayQualityBudgetBurn", burn="fast"), 60)
    wait_for(lambda: webhook.told("AssayEvaluatorBlind", "resolved"), 60)
    return dark


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Day, Dark]]:
    """Both, lived through at once."""
    directory = tmp_path_factory.mktemp("alerts")
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        sites = [
            Site(directory / "day", windows=("5m", "1h", "24h"), canary=True, stack=stack),
            Site(directory / "dark", windows=("1m", "1h", "24h"), canary=False, stack=stack),
        ]
        day, dark = pool.submit(live_through_a_regression, sites[0]), pool.submit(go_dark, sites[1])
        yield day.result(), dark.result()


@pytest.fixture
def day(story: tuple[Day, Dark]) -> Day:
    return story[0]


@pytest.fixture
def dark(story: tuple[Day, Dark]) -> Dark:
    return story[1]


def first(told: list[Notification]) -> Notification:
    assert told
    return told[0]


# -- what was seen


def test_the_example_of_a_webhook_has_the_shipped_routes_and_inhibition() -> None:
    shipped, example = (
        yaml.safe_load(replaced((ROOT / "deploy/alertmanager" / name).read_text(), WAITS))
        for name in ("alertmanager.yml", "webhook.yml")
    )
    for part in ("route", "inhibit_rules"):
        assert shipped[part] == example[part]
    assert [receiver["name"] for receiver in shipped["receivers"]] == [r["name"] for r in example["receivers"]]


def test_the_promised_time_is_what_the_shipped_files_add_up_to() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    assert "ASSAY_CHANGE_" not in compose, "the defaults count"
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    of_prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]
    of_alertmanager = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())["route"]
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules/rubric-safety.yml").read_text())["groups"][0]["rules"]
    waits = {rule["alert"]: rule.get("for", "0s") for rule in rules if rule.get("labels", {}).get("severity") == "page"}
    units = {"s": 1, "m": 60}

    def seconds(text: str) -> int:
        return int(text[:-1]) * units[text[-1]]

    batch = inspect.signature(Client).parameters["flush_seconds"].default
    shown = 1 + seconds(of_prometheus["scrape_interval"]) + seconds(of_prometheus["evaluation_interval"])
    told = seconds(of_alertmanager["group_wait"])
    watched = 60 + settings.change_settle_seconds + settings.change_seconds
    drop = batch + watched + shown + seconds(waits["AssayQualityDrop"]) + told
    burn = batch + shown + seconds(waits["AssayQualityBudgetBurn"]) + told
    text = (ROOT / "docs/explanation/alerts.md").read_text()
    assert f"**{drop:g} s**" in text
    assert f"{burn:g} s and the judging" in text


def test_a_worse_product_pages_in_the_promised_time_and_is_resolved_once_mended(day: Day) -> None:
    page = first(day.site.webhook.told("AssayQualityDrop", rubric="manners"))
    assert page.at - day.began <= PROMISED + BUSY
    assert page.receiver == "pages"
    assert page.authorization == f"Bearer {TOKEN}"
    assert (page.labels["app"], page.labels["severity"]) == ("shop", "page")
    assert page.annotations["runbook_url"] == "docs/runbooks/AssayQualityDrop.md"
    assert ("manners", "product") in day.verdicts
    resolved = first(day.site.webhook.told("AssayQualityDrop", "resolved", rubric="manners"))
    assert page.at < day.mended < resolved.at
    assert resolved.at - day.mended <= PROMISED_RESOLVED + BUSY


def test_a_harsher_judge_is_told_and_the_quality_page_is_not(day: Day) -> None:
    changed = first(day.site.webhook.told("AssayJudgeChanged"))
    assert (changed.labels["rubric"], changed.receiver) == ("tone", "tickets")
    assert ("tone", "judge") in day.verdicts
    assert day.inhibited_by == ["AssayJudgeChanged"]
    firing = day.site.prometheus.values(
        'ALERTS{alertname="AssayQualityDrop", rubric="tone", alertstate="firing"}', day.site.started
    )
    assert firing, "there was nothing to inhibit"
    assert [told.labels for told in day.site.webhook.notifications if told.labels["rubric"] == "tone"] == [
        changed.labels
    ]


def test_nothing_else_is_said_on_that_day(day: Day) -> None:
    """One alarm of the product, one of the judge; neither is a reason for any other alert."""
    names = {(told.labels["alertname"], told.labels["rubric"]) for told in day.site.webhook.notifications}
    assert names == {("AssayQualityDrop", "manners"), ("AssayJudgeChanged", "tone")}


def test_old_records_move_no_live_gauge_and_nobody_is_told(dark: Dark) -> None:
    assert dark.gauges_before == dark.gauges_after
    series = {name for name, _ in dark.gauges_before}
    assert {"assay_app_pass_ratio", "assay_change_evidence", "assay_change_alarm", "assay_drift_verdict"} <= series
    assert set(dark.late_before.values()) == {0.0}
    assert dark.site.running.outcomes()["manners"]["scored"] >= 120 + LIVE + OLD, "they were scored"
    told = [told for told in dark.site.webhook.notifications if told.at < dark.stopped]
    assert told == []
    alarms = dark.site.prometheus.values("assay_change_alarm", dark.site.started)
    assert {value for values in alarms.values() for _, value in values} == {0.0}


def test_a_stopped_worker_pages_and_the_scores_end(dark: Dark) -> None:
    page = first(dark.site.webhook.told("AssayEvaluatorBlind"))
    assert page.at > dark.stopped
    # The slowest of its causes that must notice this: a record waits for 15 m, for 5 m, at the pace.
    assert page.at - dark.stopped <= (900 + 300) * PACE + 5 + BUSY
    assert page.receiver == "pages"
    (shown,) = dark.site.prometheus.values(_SCORES, dark.site.started).values()
    before = [at for at, _ in shown if at < dark.swapped]
    # It is shown for as long as its window lasts, which takes in the running minute, and then not at all.
    assert dark.stopped < dark.gone
    assert 0 < max(before) - dark.backfilled <= 2 * 60 + 5
    assert not [at for at, _ in shown if max(before) < at <= dark.gone]
    up = dark.site.prometheus.values('assay_up{component="database"}', dark.site.started)
    assert {value for values in up.values() for _, value in values} == {1.0}, "the exporter was there all the time"
    assert dark.site.webhook.told("AssayEvaluatorBlind", "resolved")[-1].at > dark.swapped


def test_a_swapped_judge_is_told_and_inhibits_the_page_that_it_would_cause(dark: Dark) -> None:
    changed = dark.site.webhook.told("AssayJudgeChanged")
    assert {told.labels["rubric"] for told in changed} == {"manners", "tone"}
    assert min(told.at for told in changed) > dark.swapped
    assert all("harsh" in told.labels["judge"] for told in changed)
    assert set(dark.inhibited_by) == {"AssayJudgeChanged"}
    quality = [told for told in dark.site.webhook.notifications if told.labels.get("about") == "quality"]
    assert quality == []
