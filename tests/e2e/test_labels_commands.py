"""`assay labels`, run as a user runs it: records picked, handed out, taken back, calibrated by, audited."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from assay.judges import JudgeSettings, describe_judge
from assay.records import Context, Evaluation, Record, Score, now
from assay.rubrics import load_rubrics
from assay.store import Store
from command import assay

pytestmark = pytest.mark.e2e

RUBRIC = {rubric.name: rubric for rubric in load_rubrics()}["relevance"]
JUDGE, FINGERPRINT = describe_judge(None, JudgeSettings(engine="lexical"))


class Site:
    """A directory with a database, in which commands run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(f"sqlite:///{directory}/assay.db")
        self.store.upgrade()

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        own = {"ASSAY_DATABASE_URL": f"sqlite:///{self.directory}/assay.db", "ASSAY_DATA_DIR": str(self.directory)}
        return assay(self.directory, *arguments, code=code, ASSAY_JUDGE="lexical", **own)

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def score(self, records: Sequence[Record], *, fails: int = 4) -> None:
        """Commit the records with scores of the keyless judge; every one in `fails` fails."""
        self.store.commit(
            [(record, record.to_json()) for record in records],
            [
                Evaluation(
                    record_id=record.record_id,
                    rubric=RUBRIC.name,
                    rubric_version=RUBRIC.revision,
                    rubric_hash=RUBRIC.hash,
                    judge=JUDGE,
                    judge_fingerprint=FINGERPRINT,
                    outcome=Score(value=0.25 if number % fails == 0 else 0.75, passed=number % fails != 0),
                )
                for number, record in enumerate(records)
            ],
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.store.close()


def records(count: int, first: int = 0) -> list[Record]:
    return [
        Record(
            record_id=f"r{number:04d}",
            timestamp=now() - timedelta(minutes=5),
            app="shop",
            input=f"What does item {number} cost?",
            # The keyless judge passes the first and fails the second.
            output=f"Item {number} costs {number} euros." if number % 4 else "I don't know.",
            contexts=(Context(text=f"Item {number} costs {number} euros."),),
            trace_id=f"{number:032x}",
        )
        for number in range(first, first + count)
    ]


def test_from_a_pick_to_a_calibration_and_an_audit(site: Site) -> None:
    site.score(records(240))
    picked = site.json("labels", "pick", "--rubric", "relevance", "--budget", "120", "--twice", "0.2")
    assert picked["candidates"] == 240
    assert 90 <= len(picked["picked"]) <= 150
    told = site.run("labels", "pick", "--rubric", "relevance").stdout
    assert "had their chance in an earlier pick" in told
    assert "nothing to pick" in told

    count = len(picked["picked"])
    told = site.run("labels", "export", "sheet.csv", "--rubric", "relevance").stdout
    assert f"{count} records written to sheet.csv." in told
    with (site.directory / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    for row in rows:
        row |= {"label": "5" if int(row["record_id"][1:]) % 4 else "1", "annotator": "anna", "note": "read it"}
    rows[0]["label"] = ""
    with (site.directory / "sheet.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)

    done = site.json("labels", "import", "sheet.csv", "--rubric", "relevance", "--to", "labels.jsonl")
    assert done == {
        "file": "labels.jsonl",
        "imported": count - 1,
        "picked": count - 1,
        "back": count - 1,
        "labels": count - 1,
    }
    first = json.loads((site.directory / "labels.jsonl").read_text().splitlines()[0])
    assert (first["annotators"], first["selection"]) == ("human", "probability")

    # The second annotator's file adds to it.
    site.run("labels", "export", "second.jsonl", "--rubric", "relevance", "--second")
    lines = [json.loads(line) for line in (site.directory / "second.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["labels"] = {"ben": 4 if int(line["record"]["record_id"][1:]) % 4 else 2}
    (site.directory / "second.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    told = site.run("labels", "import", "second.jsonl", "--rubric", "relevance", "--to", "labels.jsonl").stdout
    assert "assay calibrate labels.jsonl --rubric relevance" in told
    annotators = [json.loads(line)["labels"] for line in (site.directory / "labels.jsonl").read_text().splitlines()[1:]]
    assert any(set(names) == {"anna", "ben"} for names in annotators)

    calibrated = site.json("calibrate", "labels.jsonl", "--rubric", "relevance", code=0)
    assert calibrated["stored"]
    assert calibrated["level"] in ("trend_only", "calibrated")

    # Nothing fresh: those are the labels that it was made of.
    (audited,) = site.json("labels", "audit", "labels.jsonl", "--rubric", "relevance", code=4)
    assert audited["state"] == "not_checked"

    # People turn on the judge: all that is new is bad.
    site.score(records(200, first=1000))
    site.run("labels", "pick", "--rubric", "relevance", "--budget", "200", "--since", "1h")
    newer = [
        {
            "record": json.loads(record.to_json()),
            "labels": {"anna": 1},
            "probability": 1.0,
            "labelled_at": "2098-01-01T00:00:00Z",
        }
        for record in records(200, first=1000)
    ]
    head = {"label_file": 1, "rubric": "relevance", "annotators": "human", "selection": "probability"}
    (site.directory / "newer.jsonl").write_text("\n".join(json.dumps(line) for line in [head, *newer]))
    (audited,) = site.json("labels", "audit", "newer.jsonl", "--rubric", "relevance", code=3)
    assert audited["state"] == "failed"
    assert audited["made_stale"]
    told = site.run("labels", "audit", "newer.jsonl", "--rubric", "relevance", code=3)
    assert "failed" in told.stdout
    assert [stored.state for stored in site.store.calibrations("relevance")] == ["stale"]


def test_exports_of_other_systems_find_their_records_by_trace(site: Site) -> None:
    site.score(records(8))
    scores = [
        {
            "id": f"s{number}",
            "traceId": f"{number:032x}",
            "source": "ANNOTATION",
            "name": "helpful",
            "dataType": "CATEGORICAL",
            "value": 0,
            "stringValue": "good" if number % 2 else "bad",
            "authorUserName": "anna",
            "timestamp": "2026-05-29T13:46:19.963Z",
        }
        for number in range(8)
    ]
    (site.directory / "scores.json").write_text(json.dumps(scores))
    options = ["--rubric", "relevance", "--to", "labels.jsonl", "--from", "langfuse"]
    words = ["--values", "good=pass", "--values", "bad=fail"]
    done = site.json("labels", "import", "scores.json", *options, "--name", "helpful", *words)
    assert (done["imported"], done["picked"]) == (8, 0)
    rows = [json.loads(line) for line in (site.directory / "labels.jsonl").read_text().splitlines()]
    assert rows[0]["annotators"] == "human"
    assert rows[0]["selection"] == "curated"
    assert {row["record"]["record_id"] for row in rows[1:]} == {f"r{number:04d}" for number in range(8)}
    site.run("calibrate", "labels.jsonl", "--rubric", "relevance", "--no-store", code=4)


def test_records_that_the_database_does_not_have_can_be_given(site: Site) -> None:
    (site.directory / "labels.csv").write_text("id,verdict\nr0001,ok\nr0004,bad\n")
    (site.directory / "records.jsonl").write_text("".join(record.to_json() + "\n" for record in records(8)))
    options = ["--rubric", "relevance", "--to", "out.jsonl", "--columns", "id=record_id", "--columns", "verdict=label"]
    words = ["--values", "ok=5", "--values", "bad=1", "--annotators", "human"]
    done = site.run("labels", "import", "labels.csv", *options, *words, code=2)
    assert 'labels.csv:2: record_id: record "r0001" is not known' in done.stderr
    assert 'labels.csv:3: record_id: record "r0004" is not known' in done.stderr
    site.run("labels", "import", "labels.csv", *options, *words, "--records", "records.jsonl")
    rows = [json.loads(line) for line in (site.directory / "out.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows[1:]] == [{"annotator": "pass"}, {"annotator": "fail"}]
    assert rows[0]["annotators"] == "human"


def test_mistakes_are_told_by_line_with_exit_code_2(site: Site) -> None:
    site.score(records(4))
    (site.directory / "labels.jsonl").write_text(
        "\n".join(json.dumps({"record_id": f"r{n:04d}", "label": label}) for n, label in enumerate(["good", 7, 4]))
    )
    options = ["--rubric", "relevance", "--to", "out.jsonl"]
    done = site.run("labels", "import", "labels.jsonl", *options, code=2)
    assert 'labels.jsonl:1: label: "good" is not on the scale of relevance: give pass, fail or a level' in done.stderr
    assert "labels.jsonl:2: label: 7 is not on the scale" in done.stderr
    assert not (site.directory / "out.jsonl").exists()
    site.run("labels", "pick", "--rubric", "relevance", "--budget", "2", code=0)
    (site.directory / "filled.csv").write_text("filled in by hand\n")
    for arguments, told in [
        (["export", "filled.csv", "--rubric", "relevance"], "filled.csv: exists: name another file"),
        (["import", "none.csv", *options], "none.csv: does not exist"),
        (["import", "labels.jsonl", *options, "--name", "x"], "--name and --judge are for exports of other systems"),
        (["import", "labels.jsonl", *options, "--columns", "x"], "write NAME=VALUE"),
        (["import", "labels.jsonl", *options, "--records", "none.jsonl"], "No such file"),
        (["export", "out.txt", "--rubric", "relevance"], "call it .jsonl, .csv or .json"),
        (["export", "no/out.csv", "--rubric", "relevance"], "No such file"),
        (["pick", "--rubric", "nothing"], "no rubric is called 'nothing'"),
        (["pick", "--rubric", "relevance", "--since", "soon"], "write whole minutes, hours or days"),
        (["audit", "labels.jsonl", "--rubric", "relevance"], "is not on the scale"),
    ]:
        if "labels.jsonl" in arguments and "--records" in arguments:
            (site.directory / "labels.jsonl").write_text('{"record_id": "r0001", "label": 4}\n')
        if arguments[0] == "audit":
            (site.directory / "labels.jsonl").write_text('{"record_id": "r0001", "label": 9}\n')
        done = site.run("labels", *arguments, code=2)
        assert told in done.stderr, (arguments, done.stderr)


def test_curated_labels_are_no_audit(site: Site) -> None:
    site.score(records(4))
    (site.directory / "labels.jsonl").write_text('{"record_id": "r0001", "label": 4}\n')
    done = site.run("labels", "audit", "labels.jsonl", "--rubric", "relevance", code=2)
    assert "were picked by hand" in done.stderr
