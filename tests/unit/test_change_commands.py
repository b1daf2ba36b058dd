"""`assay changes`, `compare`, `defects` and `canary` in this process: hostile texts, and wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from assay.canary import instrument_of
from assay.cli import app
from assay.errors import ConfigError
from assay.gate import Version
from assay.judges import JudgeSettings
from assay.records import Record, Sampling, Score, now
from assay.rubrics import load_rubrics
from assay.store import ChangeEvent, InstrumentName, Store
from stores import an_evaluation, with_payloads

#: Would set the title of the terminal, turn it red, and write backwards.
HOSTILE = "[red]a[/b]\x1b]0;owned\x07\x1b[31m\u202eb"

Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ASSAY_DATABASE_URL", f"sqlite:///{tmp_path}/s.db")
    made = Store(f"sqlite:///{tmp_path}/s.db", cohort_labels=["route"])
    made.upgrade()
    return made


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize(
    "command",
    [
        ("changes", "list"),
        ("changes", "show", "e"),
        ("defects", "list"),
        ("compare", "--by", "route"),
        ("compare", "--by", "cell"),
    ],
)
def test_texts_of_records_and_judges_cannot_steer_a_terminal(store: Store, run: Run, command: tuple[str, ...]) -> None:
    moment = now()
    record = Record(
        record_id="r",
        timestamp=moment - timedelta(minutes=5),
        app=HOSTILE,
        input="i",
        output="o",
        route=HOSTILE,
        cohort={"cell": HOSTILE},
        sampling=Sampling(probability=1.0),
    )
    outcome = Score(value=0.1, passed=False, defect="incomplete", explanation=HOSTILE)
    store.commit(with_payloads([record]), [an_evaluation(record, outcome, HOSTILE)])
    name = InstrumentName(HOSTILE, "1", "h", HOSTILE, "f")
    event = ChangeEvent(
        event_id="e", kind="drop", instrument=name, happened_at=moment, message=HOSTILE, app=HOSTILE, key=(1, 1)
    )
    assert store.save_changes(store.read_changes(int(moment.timestamp()) - 3600), [], [event])
    store.acknowledge_change(event, note=HOSTILE)
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert "[red]a[/b]\ufffd" in done.output, "what it says is data, and shown"
    assert not set("\x1b\x07\u202e") & set(done.output)


@pytest.mark.parametrize("command", [("defects", "list"), ("compare", "--by", "route")])
def test_a_span_longer_than_time_is_a_mistake_of_one_line(store: Store, run: Run, command: tuple[str, ...]) -> None:
    done = run(*command, "--since", "9999999w")
    assert isinstance(done.exception, ConfigError)
    assert "--since '9999999w'" in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_canary_that_is_being_run_is_not_run_beside_it(
    store: Store, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would spend the whole budget."""
    rubric_file = tmp_path / "r.yaml"
    rubric_file.write_text(
        'name: short\ntitle: Short\nversion: "1"\ninstructions: Judge whether it is short.\n'
        "scale: {type: binary, pass_when: It is short., fail_when: It is long.}\n"
        "pass_threshold: 1\njudge: {engine: lexical}\n"
    )
    labels = tmp_path / "l.jsonl"
    labels.write_text(
        '{"label_file": 1, "rubric": "short", "annotators": "author", "synthetic": true}\n'
        '{"record": {"record_id": "a", "timestamp": "2026-01-15T12:00:00Z", "input": "i", "output": "o"}, '
        '"label": "pass"}\n'
    )
    monkeypatch.setenv("ASSAY_RUBRICS", str(rubric_file))
    monkeypatch.setenv("ASSAY_CANARY", str(labels))
    (rubric,) = load_rubrics([rubric_file])
    instrument = instrument_of(Version.of(rubric, JudgeSettings(engine="lexical")))
    assert store.claim_canary(instrument, 60)
    done = run("canary", "run")
    assert isinstance(done.exception, ConfigError), done.output
    assert "the canary of short is being run" in str(done.exception)
    store.free_canary(instrument)
    assert run("canary", "run").exit_code == 0
    assert store.claim_canary(instrument, 60), "it is given back"
    monkeypatch.setenv("ASSAY_CANARY", f"shrot={labels}")
    assert "did you mean short?" in str(run("canary", "run").exception)
