"""From a record and rubrics to evaluations: the pure core that worker, CLI and calibration share.

It knows no queue, database or metrics. Whatever a judge does, every rubric gets exactly one evaluation.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from assay.defects import settled
from assay.errors import JudgeError
from assay.judges import build_judge, resolve
from assay.records import Evaluation, Failure, NotApplicable, Score, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from assay.judges import Judge, JudgeObserver, JudgeSettings
    from assay.records import Outcome, Record
    from assay.rubrics import JudgeSpec, Rubric

_log = logging.getLogger(__name__)

_MESSAGE_CHARACTERS = 500


class Judges:
    """Which judge scores which rubric: a default, and by rubric name the exceptions. Owns the judges.

    Two versions of one rubric may name two judges; `build` keeps them apart.
    """

    def __init__(self, default: Judge, overrides: Mapping[str, Judge] | None = None) -> None:
        self._default = default
        self._overrides = dict(overrides or {})
        self._by_spec: dict[JudgeSpec | None, Judge] = {}

    @classmethod
    def build(cls, rubrics: Iterable[Rubric], settings: JudgeSettings, observer: JudgeObserver | None = None) -> Self:
        """Judges for `rubrics`: those that name none share the default, those that name the same share one.

        Raises:
            ConfigError: see `build_judge`.
        """
        built = {settings: build_judge(None, settings, observer)}
        judges = cls(built[settings])
        for rubric in rubrics:
            wanted = resolve(rubric.judge, settings)
            if wanted not in built:
                built[wanted] = build_judge(rubric.judge, settings, observer)
            judges._by_spec[rubric.judge] = built[wanted]
        return judges

    def of(self, rubric: Rubric) -> Judge:
        """The judge of this rubric."""
        return self._overrides.get(rubric.name) or self._by_spec.get(rubric.judge, self._default)

    def __iter__(self) -> Iterator[Judge]:
        """Each judge once."""
        judges = (self._default, *self._overrides.values(), *self._by_spec.values())
        return iter({id(judge): judge for judge in judges}.values())

    async def aclose(self) -> None:
        """Close each judge once."""
        for judge in self:
            await judge.aclose()


async def evaluate(record: Record, rubrics: Sequence[Rubric], judges: Judges) -> list[Evaluation]:
    """One evaluation for each rubric, in their order. Never raises for what a judge or a record does.

    A record without what a rubric requires costs no call. Rubrics that share a judge and are to be asked together
    make one call, in an order that depends on the record alone; the others make a call each, and so does a second
    version of a rubric. All calls run at once.
    """
    outcomes: dict[int, Outcome] = {}
    for index, rubric in enumerate(rubrics):
        reason = rubric.missing(record)
        if reason is not None:
            outcomes[index] = NotApplicable(reason=reason)
    groups = _groups(record, [(i, rubric) for i, rubric in enumerate(rubrics) if i not in outcomes], judges)
    answers = await asyncio.gather(
        *(_judge(judge, record, [rubric for _, rubric in members]) for judge, members in groups)
    )
    for (_, members), answer in zip(groups, answers, strict=True):
        outcomes.update((index, outcome) for (index, _), outcome in zip(members, answer, strict=True))
    return [
        Evaluation(
            record_id=record.record_id,
            rubric=rubric.name,
            rubric_version=rubric.revision,
            rubric_hash=rubric.hash,
            judge=judges.of(rubric).name,
            judge_fingerprint=judges.of(rubric).fingerprint,
            outcome=_classed(outcomes[index], rubric),
        )
        for index, rubric in enumerate(rubrics)
    ]


def _classed(outcome: Outcome, rubric: Rubric) -> Outcome:
    """The outcome with a defect of the rubric's, whatever its judge made of it."""
    if not isinstance(outcome, Score):
        return outcome
    defect = settled(outcome.passed, outcome.defect, rubric.defects)
    return outcome if defect == outcome.defect else replace(outcome, defect=defect)


def _groups(
    record: Record, rubrics: Sequence[tuple[int, Rubric]], judges: Judges
) -> list[tuple[Judge, list[tuple[int, Rubric]]]]:
    """What goes into one call: (judge, [(index, rubric), ...])."""
    groups: list[tuple[Judge, list[tuple[int, Rubric]]]] = []
    for index, rubric in rubrics:
        judge = judges.of(rubric)
        for other, members in groups:
            # A judge answers by rubric name: a second version of one has no place in the call of the first.
            if other is judge and all(r.ask == rubric.ask == "together" and r.name != rubric.name for _, r in members):
                members.append((index, rubric))
                break
        else:
            groups.append((judge, [(index, rubric)]))
    for _, members in groups:
        # The order of criteria shifts scores: vary it over records, so that no rubric always profits.
        members.sort(key=lambda member: hashlib.sha256(f"{record.record_id}\0{member[1].name}".encode()).digest())
    return groups


async def _judge(judge: Judge, record: Record, rubrics: Sequence[Rubric]) -> Sequence[Outcome]:
    try:
        outcomes = await judge.judge(record, rubrics)
        if len(outcomes) != len(rubrics) or not all(isinstance(o, Score | Failure | NotApplicable) for o in outcomes):
            raise TypeError(
                f"judge {judge.name} gave {len(outcomes)} answers of its own making to {len(rubrics)} rubrics"
            )
    except JudgeError as error:
        shares = (error.usage or Usage()).split(len(rubrics))
        return [
            Failure(
                kind=error.kind,
                message=str(error)[:_MESSAGE_CHARACTERS],
                retry_after_seconds=error.retry_after_seconds,
                usage=share,
            )
            for share in shares
        ]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a judge's bug may cost its own verdicts, not others'
        _log.exception("judge failed", extra={"judge": judge.name, "record_id": record.record_id})
        message = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]
        return [Failure(kind="internal", message=message) for _ in rubrics]
    return outcomes
