"""`assay defects` and `assay compare`, run as a user runs them. All records are synthetic."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from assay.records import Evaluation, Record, Sampling, Score, Usage, now
from assay.store import Store
from command import assay

pytestmark = pytest.mark.e2e


class Site:
    """A directory with a database, in which commands run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"sqlite:///{directory}/assay.db"
        with Store(self.url) as store:
            store.upgrade()
            _fill(store)

    def run(self, *arguments: str, code: int = 0) -> str:
        own = {"ASSAY_DATABASE_URL": self.url, "ASSAY_DATA_DIR": str(self.directory)}
        done = assay(self.directory, *arguments, code=code, **own)
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


def _fill(store: Store) -> None:
    """Two prompts, 400 records each: the second fails 18 points more often, is sampled less and costs more."""
    moment = now()
    records, evaluations = [], []
    for number in range(800):
        second = number >= 400
        passed = number % 10 != 0 if not second else number % 25 > 6
        record = Record(
            record_id=f"r{number:03}",
            timestamp=moment - timedelta(seconds=number),
            app="shop",
            input="Where is my parcel?",
            output="On its way.",
            prompt_version="new" if second else "old",
            cohort={"language": "de" if number % 2 else "en"},
            sampling=Sampling(probability=0.5 if second else 1.0),
            usage=Usage(cost_usd=0.003 + 0.0001 * (number % 7) if second else 0.002 + 0.0001 * (number % 7)),
        )
        score = Score(value=0.9, passed=True) if passed else Score(value=0.2, passed=False, defect="off_topic")
        records.append((record, record.to_json()))
        evaluations.append(
            Evaluation(
                record_id=record.record_id,
                rubric="relevance",
                rubric_version="1-0a1b2c3d",
                rubric_hash="0a" * 32,
                judge="lexical",
                judge_fingerprint="f" * 64,
                outcome=score,
            )
        )
    store.commit(records, evaluations)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_two_prompts_are_compared(site: Site) -> None:
    text = site.run("compare", "--by", "prompt_version", "--since", "1d", "--app", "shop", "--baseline", "old")
    assert "relevance, version 1-0a1b2c3d, judge lexical" in text
    assert "\nnew: worse by 13 to 23 points; costs 0.00097 to 0.001 USD more an interaction\n" in text
    report = site.json("compare", "--by", "prompt_version", "--since", "1d", "--baseline", "old")
    (comparison,) = report["comparisons"]
    old, new = comparison["groups"]
    assert (old["group"], old["conclusion"], new["group"], new["conclusion"]) == ("old", "baseline", "new", "worse")
    assert new["interactions"] == 800
    assert new["pass_difference"]["value"] == pytest.approx(-0.18)
    assert new["cost_difference"]["value"] == pytest.approx(0.001, abs=2e-5)
    assert new["cost_difference"]["lower"] > 0


def test_a_cohort_key_that_is_no_metric_label_can_be_compared(site: Site) -> None:
    (comparison,) = site.json("compare", "--by", "language", "--since", "2020-01-01")["comparisons"]
    assert {group["group"] for group in comparison["groups"]} == {"de", "en"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "tier"], "no record of this span has a 'tier'"),
        (["--by", "model", "--since", "soon"], "--since 'soon': write 24h"),
        (["--by", "model", "--since", "1d", "--until", "2d"], "nothing lies between"),
        (["--by", "prompt_version", "--baseline", "x"], "--baseline 'x' is no prompt_version"),
        (["--by", "model", "--app", "other"], "nothing was judged in this span"),
    ],
)
def test_mistakes_are_one_line(site: Site, arguments: list[str], message: str) -> None:
    said = site.run("compare", *arguments, code=2)
    assert message in said
    warnings, rest = [], []
    for line in said.strip().splitlines():
        (warnings if line.startswith("warning: ") else rest).append(line)
    assert len(rest) == 1
    assert len(warnings) == ("other" in arguments), "that nothing has come from an app is told besides"


def test_defects_are_listed_and_set(site: Site) -> None:
    text = site.run("defects", "list")
    assert "off_topic" in text
    assert "The answer is to another question." in text
    listed = site.json("defects", "list", "--limit", "1")
    (count,) = listed["counts"]
    # 40 of the first prompt, and 112 of the second, each of which stands for two.
    assert (count["defect"], count["n"], count["sum_w"]) == ("off_topic", 152, 264.0)
    name = listed["records"][0]["record_id"]
    assert site.json("defects", "set", name, "selection", "--rubric", "relevance")["changed"] == 1
    assert "0 scores changed" in site.run("defects", "set", name, "selection", "--rubric", "relevance")
    (finding,) = site.json("defects", "list", "--defect", "selection")["records"]
    assert (finding["record_id"], finding["by_person"], finding["judge_defect"]) == (name, True, "off_topic")
    with Store(site.url) as store:
        assert {c.defect: (c.n, c.moved) for c in store.defect_totals()} == {
            "off_topic": (152, 1),
            "selection": (1, 0),
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set", "none", "selection", "--rubric", "relevance"], "no record is called 'none'"),
        (["set", "r001", "selection", "--rubric", "relevance"], "passed relevance"),
        (["set", "r000", "made_up", "--rubric", "relevance"], "no defect is called 'made_up'"),
        (["set", "r000", "unclassified", "--rubric", "relevance"], "name a class"),
        (["list", "--defect", "made_up"], "--defect 'made_up': there are retrieval_miss"),
    ],
)
def test_mistakes_with_defects_are_one_line(site: Site, arguments: list[str], message: str) -> None:
    said = site.run("defects", *arguments, code=2)
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_an_empty_span_is_said_to_be(site: Site) -> None:
    assert "No answer of the last 24h has a defect." in site.run("defects", "list", "--app", "other")
