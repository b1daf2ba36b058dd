"""`assay calibrate --attacks`: how often injected texts sway a judge, without fences and rules and with them."""

from __future__ import annotations

import tempfile
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from assay.attacks import (
    ALL,
    SHIPPED_ATTACKS,
    count,
    read_attacks,
    records_of,
    result_of,
    success_ratio,
    total,
    verdict_of,
)
from assay.cli._judging import instrument_of, judged, keep
from assay.cli._options import chosen_rubrics
from assay.cli._screen import errors, output, print_json, print_table, ratio
from assay.records import Failure, now
from assay.store import AttackCounts, AttackRun, Defences, InstrumentName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from assay.attacks import AttackSet, Trial, Verdict
    from assay.judging import Forecast, Instrument
    from assay.records import Outcome
    from assay.rubrics import Rubric
    from assay.settings import Settings
    from assay.store import Store

_EXIT_ABOVE, _EXIT_UNKNOWN = 3, 4
_SHOWN_CHARACTERS = 100
_WORDS: Mapping[Defences, str] = {"off": "without fences and rules", "on": "with them"}


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """What the options say."""

    settings: Settings
    #: None: the shipped attack set
    file: Path | None
    #: None: all rubrics of the settings
    rubric: str | None
    judge: str | None
    budget: float | None
    offline: bool
    dry_run: bool
    limit: int | None
    seed: int
    #: largest success ratio that is put up with; None: nothing is asked
    most: float | None
    again: bool
    worst: int
    keep: bool
    as_json: bool


@dataclass(kw_only=True)
class _Measured:
    """What came of the attacks on one rubric and judge."""

    rubric: Rubric
    trials: Sequence[Trial]
    judge: str = ""
    judge_fingerprint: str = ""
    outcomes: dict[Defences, Mapping[str, Outcome]] = field(default_factory=dict)
    #: of a dry run
    forecasts: dict[Defences, Forecast] = field(default_factory=dict)
    calls: int = 0
    spent_usd: float = 0.0
    stopped: str | None = None
    stored: bool = False

    def counts(self, side: Defences) -> dict[str, AttackCounts]:
        """By family."""
        return count(self.trials, self.outcomes[side])

    @property
    def whole(self) -> bool:
        """Whether every attack was come to."""
        return not any(total(self.counts(side)).not_judged for side in self.outcomes)

    def failures(self, side: Defences) -> Counter[str]:
        """Failures on records with an attack, by kind."""
        found = (self.outcomes[side].get(trial.record.record_id) for trial in self.trials)
        return Counter(outcome.kind for outcome in found if isinstance(outcome, Failure))

    def successes(self, side: Defences) -> list[Trial]:
        """The attacks that succeeded."""
        return [trial for trial in self.trials if result_of(trial, self.outcomes[side]) == "succeeded"]

    def verdict(self, most: float | None) -> Verdict | None:
        """Whether few enough succeeded; None where nothing is asked."""
        return None if most is None else verdict_of(total(self.counts("on")), most)


def measure_attacks(options: AttackOptions) -> None:
    """Try the attacks on each rubric, print what came of it and keep it; ends the command by its exit code.

    Raises:
        ConfigError: a mistake in a file or an option.
    """
    attack_set = read_attacks(options.file or SHIPPED_ATTACKS)
    trials = attack_set.trials(options.limit, options.seed)
    rubrics = chosen_rubrics(options.settings, [options.rubric] if options.rubric else [])
    with tempfile.TemporaryDirectory(prefix="assay-attacks-") as empty:
        # The rubrics of one call share it: what was asked for one of them is there for the next.
        directory = Path(empty) if options.again else options.settings.data_dir / "judged"
        budget, found = options.budget, []
        for rubric in rubrics:
            measured = _measure(options, rubric, trials, budget, directory)
            budget = None if budget is None else max(0.0, budget - measured.spent_usd)
            found.append(measured)
    if options.dry_run:
        if options.as_json:
            print_json(
                [
                    {"rubric": measured.rubric.name, "defences": side, "dry_run": True, **asdict(forecast)}
                    for measured in found
                    for side, forecast in measured.forecasts.items()
                ]
            )
        return
    for measured in found:
        if options.keep and _worth_keeping(measured):
            measured.stored = keep(options.settings, "what came of the attacks", _saving(measured, attack_set))
    if options.as_json:
        print_json(_as_json(options, attack_set, trials, found))
    else:
        for measured in found:
            _print(options, measured)
    _exit(options, found)


def _measure(
    options: AttackOptions, rubric: Rubric, trials: Sequence[Trial], budget: float | None, directory: Path
) -> _Measured:
    """Judge the records without and with attacks, in both ways that the judge can be asked in."""
    instrument = instrument_of(options.settings, rubric, options.judge)
    measured = _Measured(rubric=rubric, trials=trials)
    sides: tuple[Defences, ...] = ("off", "on") if _has_defences(instrument) else ("on",)
    for side in sides:
        asked = replace(instrument, settings=replace(instrument.settings, guarded=side == "on"))
        what = f"{rubric.name}, {_WORDS[side] if len(sides) > 1 else 'attacks'}: "
        asked_for = judged(
            options.settings,
            records_of(trials),
            asked,
            budget=budget,
            offline=options.offline,
            dry_run=options.dry_run,
            directory=directory,
            what=what,
        )
        measured.judge, measured.judge_fingerprint = asked_for.judge, asked_for.judge_fingerprint
        result = asked_for.result
        if result is None:
            measured.forecasts[side] = asked_for.forecast
            continue
        budget = None if budget is None else max(0.0, budget - result.spent_usd)
        measured.outcomes[side] = result.outcomes
        measured.calls += result.calls
        measured.spent_usd += result.spent_usd
        measured.stopped = measured.stopped or result.stopped
    return measured


def _has_defences(instrument: Instrument) -> bool:
    """Whether the judge can be asked without fences and rules: only of a prompt of ours can they be left out."""
    return instrument.judge.engine == "openai"


# -- what is kept


def _worth_keeping(measured: _Measured) -> bool:
    """A run that was cut short says nothing of the attacks that it did not come to."""
    return measured.whole and success_ratio(total(measured.counts("on"))) is not None


def _saving(measured: _Measured, attack_set: AttackSet) -> Any:
    run = AttackRun(
        run_id=uuid.uuid4().hex,
        instrument=InstrumentName(
            measured.rubric.name,
            measured.rubric.revision,
            measured.rubric.hash,
            measured.judge,
            measured.judge_fingerprint,
        ),
        attack_set=attack_set.digest,
        measured_at=now(),
        counts={side: measured.counts(side) for side in measured.outcomes},
    )

    def save(store: Store) -> None:
        if not measured.calls:
            # Nobody was asked, so the run that is stored is as old as it says.
            stored = {one.instrument.key: one for one in store.attack_runs()}.get(run.instrument.key)
            if stored is not None and (stored.attack_set, stored.counts) == (run.attack_set, run.counts):
                return
        store.save_attack_run(run)

    return save


# -- what is told


def _print(options: AttackOptions, measured: _Measured) -> None:
    sides = list(measured.outcomes)
    by_side = {side: measured.counts(side) for side in sides}
    rows = []
    for family in [*by_side["on"], ALL]:
        of = {side: total(found) if family == ALL else found[family] for side, found in by_side.items()}
        shares = [ratio(success_ratio(of[side])) for side in sides]
        rows.append((family, sum(asdict(of["on"]).values()), *shares, *_apart(of["on"])))
    rubric = measured.rubric
    print_table(
        f"Attacks on {rubric.name} {rubric.revision} by {measured.judge}: share that succeeded",
        ("family", "attacks>", *(_WORDS[side] if len(sides) > 1 else "share" for side in sides), *_APART),
        rows,
    )
    for side in sides:
        if failures := measured.failures(side):
            kinds = ", ".join(f"{kind} {n}" for kind, n in failures.most_common())
            _say(f"No verdict {_WORDS[side]}: {kinds}. That is neither a success nor resisted.")
    if n := total(by_side["on"]).no_base:
        _say(f"{n} attacks tell nothing: the same record without them got a wrong verdict, or none.")
    successes = measured.successes("on")
    for trial in successes[: options.worst]:
        text = " ".join(trial.attack.text.split())[:_SHOWN_CHARACTERS]
        _say(f"{trial.attack.id} ({trial.attack.place}, {trial.attack.goal}): {text}")
    if len(successes) > options.worst > 0:
        _say(f"... and {len(successes) - options.worst} more: --worst, or --json")
    if measured.stored:
        _say("Kept in the database: the exporter shows it from now on.")
    elif options.keep and not measured.whole:
        errors.print("It is not kept, for not every attack was come to.")
    if (verdict := measured.verdict(options.most)) is not None:
        said = {"below": "at most", "above": "more than", "unknown": "not known whether more than"}[verdict]
        _say(f"{rubric.name}: {said} {options.most:g} of the attacks succeed.")


_APART = ("no verdict>", "aimed at none>", "not told>")


def _apart(counts: AttackCounts) -> tuple[object, ...]:
    """What is in no share: failures, those that wanted one (of how many), and what tells nothing."""
    wanted = counts.broken + counts.unbroken
    return (
        counts.failed or "",
        f"{counts.broken} of {wanted}" if wanted else "",
        counts.no_base + counts.not_judged or "",
    )


def _say(line: str) -> None:
    output.print(escape(line), soft_wrap=True, highlight=False)


def _as_json(
    options: AttackOptions, attack_set: AttackSet, trials: Sequence[Trial], found: Sequence[_Measured]
) -> dict[str, Any]:
    return {
        "attack_set": attack_set.digest,
        "attacks": len(trials),
        "of": len(attack_set.attacks),
        "max_success_ratio": options.most,
        "spent_usd": sum(measured.spent_usd for measured in found),
        "rubrics": [
            {
                "rubric": measured.rubric.name,
                "rubric_version": measured.rubric.revision,
                "rubric_hash": measured.rubric.hash,
                "judge": measured.judge,
                "judge_fingerprint": measured.judge_fingerprint,
                "calls": measured.calls,
                "whole": measured.whole,
                "stopped": measured.stopped,
                "stored": measured.stored,
                "verdict": measured.verdict(options.most) or "no_threshold",
                "defences": {side: _side_json(measured, side) for side in measured.outcomes},
            }
            for measured in found
        ],
    }


def _side_json(measured: _Measured, side: Defences) -> dict[str, Any]:
    counts = measured.counts(side)
    return {
        ALL: _counts_json(total(counts)),
        "families": {family: _counts_json(of) for family, of in counts.items()},
        "failures": dict(measured.failures(side)),
        "successes": [trial.attack.id for trial in measured.successes(side)],
    }


def _counts_json(counts: AttackCounts) -> dict[str, Any]:
    share = success_ratio(counts)
    return {
        **asdict(counts),
        "success_ratio": None if share is None else share.value,
        "success_ratio_ci": None if share is None else [share.lower, share.upper],
    }


def _exit(options: AttackOptions, found: Sequence[_Measured]) -> None:
    verdicts = {measured.verdict(options.most) for measured in found}
    if "above" in verdicts:
        raise typer.Exit(_EXIT_ABOVE)
    told = all(measured.whole and success_ratio(total(measured.counts("on"))) for measured in found)
    if "unknown" in verdicts or not told:
        raise typer.Exit(_EXIT_UNKNOWN)
