"""From a record and rubrics to evaluations: the pure core that worker, CLI and calibration share.

It knows no queue, database or metrics. Whatever a judge does, every rubric gets exactly one evaluation.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal, Self

from assay.circuits import DOWN
from assay.defects import settled
from assay.echoes import Texts
from assay.errors import JudgeError, SettingsError
from assay.judges import Elsewhere, build_judge, describe_judge, resolve
from assay.records import Evaluation, Failure, NotApplicable, Score, Usage
from assay.repeats import Poll
from assay.scales import Binary

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from assay.budgets import Purse
    from assay.judges import Engine, Judge, JudgeObserver, JudgeSettings
    from assay.limits import Limits
    from assay.records import Outcome, Record
    from assay.reuse import Reuse
    from assay.rubrics import JudgeSpec, Rubric

    #: place among the rubrics of a call of `evaluate`, the rubric, and who is asked
    _Asked = tuple[int, Rubric, Judge]

_log = logging.getLogger(__name__)

_MESSAGE_CHARACTERS = 500

#: Why a judge could not be asked, and another is: its budget is spent, or its circuit is open.
Refusal = Literal["budget", "circuit"]


class Judges:
    """Which judge scores which rubric: a default, and by rubric name the exceptions. Owns the judges.

    Two versions of one rubric may name two judges; `build` keeps them apart.
    """

    def __init__(
        self, default: Judge, overrides: Mapping[str, Judge] | None = None, *, reuse: Reuse | None = None
    ) -> None:
        self._default = default
        self._overrides = dict(overrides or {})
        self._by_spec: dict[JudgeSpec | None, Judge] = {}
        #: by why, the judge's spec, and the rubric's own spec of who stands in for it
        self._stand_ins: dict[tuple[Refusal, JudgeSpec | None, JudgeSpec | None], Judge] = {}
        self._purse: Purse | None = None
        self._limits: Limits | None = None
        self._observer: JudgeObserver | None = None
        #: verdicts that are known already; None: every record is asked about
        self.reuse = reuse

    @classmethod
    def build(
        cls,
        rubrics: Iterable[Rubric],
        settings: JudgeSettings,
        observer: JudgeObserver | None = None,
        *,
        purse: Purse | None = None,
        limits: Limits | None = None,
        cheaper: JudgeSpec | None = None,
        reuse: Reuse | None = None,
        fallback: JudgeSpec | None = None,
        elsewhere: Collection[Engine] = (),
    ) -> Self:
        """Judges for `rubrics`: those that name none share the default, those that name the same share one.

        Args:
            rubrics: each may name its own judge, a cheaper one, and a fallback.
            settings: of the default judge.
            observer: hears of every request.
            purse: is asked before every request, and closed with the judges.
            limits: has every request wait for its turn; closed with the judges.
            cheaper: asked in the place of a judge whose budget is spent, where a rubric names none.
            reuse: keeps verdicts for equal records; closed with the judges.
            fallback: the same of one whose endpoint is down.
            elsewhere: engines that others ask: nothing of them is loaded, and `serves` is False of what needs one.

        Raises:
            ConfigError: see `build_judge`; a rubric with repeats has a judge that would say the same again.
        """
        built: dict[JudgeSettings, Judge] = {settings: build_judge(None, settings, observer, purse, limits)}
        judges = cls(built[settings], reuse=reuse)
        judges._purse = purse
        judges._limits = limits
        judges._observer = observer

        def judge_of(spec: JudgeSpec | None) -> Judge:
            wanted = resolve(spec, settings)
            if wanted not in built and wanted.engine in elsewhere:
                built[wanted] = Elsewhere(*describe_judge(spec, settings))
            elif wanted not in built:
                built[wanted] = build_judge(spec, settings, observer, purse, limits)
            return built[wanted]

        for rubric in rubrics:
            _check_repeats(rubric, resolve(rubric.judge, settings))
            judges._by_spec[rubric.judge] = judge_of(rubric.judge)
            for why, own, usual in _stand_in_specs(rubric, cheaper, fallback):
                spec = own or usual
                if spec is not None and judge_of(spec) is not judge_of(rubric.judge):
                    judges._stand_ins[why, rubric.judge, own] = judge_of(spec)
        return judges

    def of(self, rubric: Rubric) -> Judge:
        """The judge of this rubric."""
        return self._overrides.get(rubric.name) or self._by_spec.get(rubric.judge, self._default)

    def serves(self, rubric: Rubric) -> bool:
        """Whether its judge, and who may have to stand in for that one, are asked here and not elsewhere."""
        return not any(isinstance(judge, Elsewhere) for judge in (self.of(rubric), *self.stand_ins(rubric).values()))

    def stand_ins(self, rubric: Rubric) -> dict[Refusal, Judge]:
        """Who is asked instead when the rubric's judge cannot be, by why it cannot; nobody for what is left out."""
        found = {
            why: self._stand_ins.get((why, rubric.judge, own)) for why, own, _ in _stand_in_specs(rubric, None, None)
        }
        return {why: judge for why, judge in found.items() if judge is not None}

    def repeated(self, judge: Judge, outcome: Outcome) -> None:
        """A verdict beyond the first was asked for, and this came of it."""
        if self._observer is not None:
            kind = outcome.kind if isinstance(outcome, Failure) else "ok" if isinstance(outcome, Score) else None
            self._observer.repeated(judge.name, kind or "not_applicable")

    def __iter__(self) -> Iterator[Judge]:
        """Each judge that is asked here, once."""
        judges = (self._default, *self._overrides.values(), *self._by_spec.values(), *self._stand_ins.values())
        return iter({id(judge): judge for judge in judges if not isinstance(judge, Elsewhere)}.values())

    async def aclose(self) -> None:
        """Close each judge once."""
        for judge in self:
            await judge.aclose()
        if self._purse is not None:
            await self._purse.aclose()
        if self._limits is not None:
            await self._limits.aclose()
        if self.reuse is not None:
            await self.reuse.aclose()


async def evaluate(
    record: Record, rubrics: Sequence[Rubric], judges: Judges, *, stand_in: bool = True
) -> list[Evaluation]:
    """One evaluation for each rubric, in their order. Never raises for what a judge or a record does.

    A record without what a rubric requires costs no call. Rubrics that share a judge and are to be asked together
    make one call, in an order that depends on the record alone; the others make a call each, and so does a second
    version of a rubric. All calls run at once, but repeats come one after the other, for those rubrics of a call that
    are still in doubt. Once there is one verdict, there is a score: a repeat that fails takes nothing away from it.

    What a judge could not be asked, for want of a budget or because its endpoint is down, is then asked of the rubric's
    cheaper or fallback judge, if it has one and `stand_in`: what that one makes of it bears its name and fingerprint.
    Where it fails too, the failure is the first judge's, whom a replay asks: its score then takes the failure's place.
    """
    outcomes: dict[int, Outcome] = {}
    for index, rubric in enumerate(rubrics):
        reason = rubric.missing(record)
        if reason is not None:
            outcomes[index] = NotApplicable(reason=reason)
    asked = [judges.of(rubric) for rubric in rubrics]
    todo = [(i, rubric, asked[i]) for i, rubric in enumerate(rubrics) if i not in outcomes]
    outcomes |= await _ask(record, todo, judges)
    if stand_in:
        whys = [(i, rubric, _refusal(outcomes[i])) for i, rubric, _ in todo]
        refused = [(i, rubric, judges.stand_ins(rubric).get(why)) for i, rubric, why in whys if why is not None]
        again = [(i, rubric, judge) for i, rubric, judge in refused if judge is not None]
        for (i, _, judge), outcome in zip(again, (await _ask(record, again, judges)).values(), strict=True):
            first = outcomes[i]
            if not isinstance(outcome, Failure):
                asked[i] = judge
            # What a judge took before its repair was refused is not forgotten.
            outcomes[i] = replace(_of_both(first, outcome, judge), usage=outcome.usage + first.usage)
    return [
        Evaluation(
            record_id=record.record_id,
            rubric=rubric.name,
            rubric_version=rubric.revision,
            rubric_hash=rubric.hash,
            judge=asked[index].name,
            judge_fingerprint=asked[index].fingerprint,
            outcome=_classed(outcomes[index], rubric),
        )
        for index, rubric in enumerate(rubrics)
    ]


async def _ask(record: Record, wanted: Sequence[_Asked], judges: Judges) -> dict[int, Outcome]:
    """The outcomes of these, by index and in their order."""
    groups = _groups(record, wanted)
    calls = [_answers(judge, record, [rubric for _, rubric in members], judges) for judge, members in groups]
    # Mostly one, which needs no task of its own.
    answers = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
    outcomes: dict[int, Outcome] = {}
    for (_, members), answer in zip(groups, answers, strict=True):
        outcomes.update((index, outcome) for (index, _), outcome in zip(members, answer, strict=True))
    return {index: outcomes[index] for index, _, _ in wanted}


def _refusal(outcome: Outcome) -> Refusal | None:
    """Why the judge could not be asked; None: it was, or it will be when its turn comes."""
    if not isinstance(outcome, Failure):
        return None
    if outcome.kind == "budget":
        return "budget"
    return "circuit" if outcome.unasked and outcome.kind in DOWN else None


def _of_both(first: Outcome, second: Outcome, stand_in: Judge) -> Outcome:
    """What a record's judge, who could not be asked, and its stand-in come to: of two failures what sooner passes."""
    if not isinstance(first, Failure) or not isinstance(second, Failure):
        return second
    if _refusal(second) is not None:
        return first
    message = f"{first.message}; {stand_in.name} in its place: {second.message}"[:_MESSAGE_CHARACTERS]
    # The stand-in was asked, and that uses up a try: else it would be asked for as long as the first is down.
    return replace(second if second.transient else first, message=message, judge_model=None, unasked=second.unasked)


def _stand_in_specs(
    rubric: Rubric, cheaper: JudgeSpec | None, fallback: JudgeSpec | None
) -> Iterator[tuple[Refusal, JudgeSpec | None, JudgeSpec | None]]:
    """Why, the rubric's own stand-in, and that of rubrics that name none."""
    yield "budget", rubric.cheaper_judge, cheaper
    yield "circuit", rubric.fallback_judge, fallback


def _check_repeats(rubric: Rubric, judge: JudgeSettings) -> None:
    """Raises SettingsError where all repeats would be paid for and say what the first verdict said."""
    if rubric.repeats is None:
        return
    if judge.engine == "ragas":
        raise SettingsError(f"rubric {rubric.name}: the engine ragas is asked once: remove `repeats`")
    if judge.engine == "openai" and judge.temperature == 0:
        raise SettingsError(
            f"rubric {rubric.name}: at temperature 0 its judge says the same again: for its `repeats` write "
            "`judge: {temperature: 0.7}` in the rubric, or set ASSAY_JUDGE_TEMPERATURE"
        )


def _classed(outcome: Outcome, rubric: Rubric) -> Outcome:
    """The outcome with a defect of the rubric's, whatever its judge made of it."""
    if not isinstance(outcome, Score):
        return outcome
    defect = settled(outcome.passed, outcome.defect, rubric.defects)
    return outcome if defect == outcome.defect else replace(outcome, defect=defect)


def _groups(record: Record, wanted: Sequence[_Asked]) -> list[tuple[Judge, list[tuple[int, Rubric]]]]:
    """What goes into one call: (judge, [(index, rubric), ...])."""
    groups: list[tuple[Judge, list[tuple[int, Rubric]]]] = []
    for index, rubric, judge in wanted:
        for other, members in groups:
            # A judge answers by rubric name: a second version of one has no place in the call of the first.
            if other is judge and all(r.ask == rubric.ask == "together" and r.name != rubric.name for _, r in members):
                members.append((index, rubric))
                break
        else:
            groups.append((judge, [(index, rubric)]))
    return [(judge, _ordered(record, members)) for judge, members in groups]


def _ordered(record: Record, members: list[tuple[int, Rubric]]) -> list[tuple[int, Rubric]]:
    """The order of criteria shifts scores: it varies over records, so that no rubric always profits.

    Of all orders only a balanced few are used, because each is a prompt of its own to a provider's prompt cache.
    """
    members.sort(key=lambda member: member[1].name)
    orders = balanced_orders(len(members))
    drawn = int.from_bytes(hashlib.sha256(record.record_id.encode(errors="replace")).digest()[:8])
    return [members[place] for place in orders[drawn % len(orders)]]


@lru_cache
def balanced_orders(count: int) -> tuple[tuple[int, ...], ...]:
    """Orders of `count` things, above 0: each stands in each place, and right after each other, equally often.

    `count` orders where it is even (or 1), twice as many where it is odd. Source: E. J. Williams, "Experimental designs
    balanced for the estimation of residual effects of treatments", Australian J. of Scientific Research A 2 (1949).
    """
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    orders = [tuple((step + start) % count for step in zigzag) for start in range(count)]
    if count % 2 and count > 1:
        orders += [order[::-1] for order in orders]
    return tuple(orders)


async def _answers(judge: Judge, record: Record, rubrics: Sequence[Rubric], judges: Judges) -> Sequence[Outcome]:
    """What is known of this judge, where it would say the same again; the rest is asked."""
    reuse = judges.reuse
    if reuse is None or not getattr(judge, "repeatable", False):
        return await _polled(judge, record, rubrics, judges)
    ask = partial(_judge, judge, record)
    return await reuse.outcomes(record, rubrics, judge=judge.name, fingerprint=judge.fingerprint, ask=ask)


async def _polled(judge: Judge, record: Record, rubrics: Sequence[Rubric], judges: Judges) -> Sequence[Outcome]:
    """An outcome for each; of a rubric with repeats, what its verdicts come to. Who never varies is asked once."""
    outcomes = list(await _judge(judge, record, rubrics))
    if not getattr(judge, "varies", False):
        return outcomes
    polls = {
        place: Poll(
            rubric.repeats,
            pass_threshold=rubric.pass_threshold,
            plain=isinstance(rubric.scale, Binary),
            first=first,
        )
        for place, (rubric, first) in enumerate(zip(rubrics, outcomes, strict=True))
        if rubric.repeats is not None and isinstance(first, Score)
    }
    while in_doubt := [place for place, poll in polls.items() if poll.asks_again]:
        again = await _judge(judge, record, [rubrics[place] for place in in_doubt])
        for place, outcome in zip(in_doubt, again, strict=True):
            polls[place].add(outcome)
            judges.repeated(judge, outcome)
    for place, poll in polls.items():
        outcomes[place] = poll.outcome
    return outcomes


async def _judge(judge: Judge, record: Record, rubrics: Sequence[Rubric]) -> Sequence[Outcome]:
    """One outcome of each. Failures' messages are seen by many: what they quote of the record is left out."""
    outcomes = await _asked(judge, record, rubrics)
    if not any(isinstance(outcome, Failure) for outcome in outcomes):
        return outcomes
    texts = Texts(record.texts())
    return [
        replace(outcome, message=texts.hidden(outcome.message)) if isinstance(outcome, Failure) else outcome
        for outcome in outcomes
    ]


async def _asked(judge: Judge, record: Record, rubrics: Sequence[Rubric]) -> Sequence[Outcome]:
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
                unasked=error.unasked,
            )
            for share in shares
        ]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a judge's bug may cost its own verdicts, not others'
        _log.exception("judge failed", extra={"judge": judge.name, "record_id": record.record_id})
        message = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]
        return [Failure(kind="internal", message=message) for _ in rubrics]
    return outcomes
