"""The detector of one label set and instrument: it learns what is usual, watches, alarms, and tells when it is over."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from assay.calibration.drift import EDetector
from assay.calibration.proportions import clopper_pearson_interval
from assay.windows import DAY, HOUR, Sums, kish, pass_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from assay.store import StreamPhase, WatchedScore

#: A stream that passes less than this cannot get worse: there is nothing to watch.
_LEAST_REFERENCE = 0.05
#: Records to a false alarm, whatever the traffic: below it the alarm would hang on a handful of records.
_LEAST_RUN = 200.0
#: Records to a false recovery, at the least.
_LEAST_MIRROR_RUN = 500.0
#: Of a level that was never left, its mean is estimated with this confidence, one-sided.
_CONFIDENCE = 0.99
_RATE_DAYS = 7
#: Of the largest bet; about the best ones against a change by ten points from 90 %, and back, where all weigh the same.
_BET, _MEND_BET = 0.1, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePolicy:
    """How the watch decides; the settings of the same names (`ASSAY_CHANGE_...`) say what each is for."""

    #: effective records to learn the usual pass ratio from
    reference_records: int = 500
    #: objective: a stream must keep the rubric's objective, or its reference where it never reached that
    against: Literal["objective", "reference"] = "objective"
    #: days for each false alarm, of all streams together
    false_alarm_days: float = 30.0
    #: how many streams share it; None counts them
    streams: int | None = None
    #: effective records since the change before there is an alarm, and since the mend before it is over
    min_records: int = 30
    recovery_records: int = 200
    #: how long a minute stays open for verdicts that come later, and for records that wait in the queue
    settle_seconds: float = 120.0
    wait_seconds: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """What one score brought about."""

    kind: Literal["learned", "alarm", "recovered"]
    at: datetime
    record_id: str
    message: str
    details: Mapping[str, Any]


@dataclass(slots=True)
class _Onset:
    """Since when: CUSUM's last return to zero, the likeliest moment of a change, and what was seen since then."""

    bet: float
    #: of CUSUM, above 1 while something is seen
    weight: float = 0.0
    at: float = 0.0
    #: sums of the records since then as in `Sums`, each with its share for a weight; plain, because every score adds
    n: int = 0
    passes: int = 0
    sum_w: float = 0.0
    sum_w2: float = 0.0
    sum_wp: float = 0.0
    sum_w2p: float = 0.0

    def add(self, gap: float, passed: bool, share: float, at: float) -> None:
        if self.weight <= 1.0:
            self.weight, self.at, self.n, self.passes = 1.0, at, 0, 0
            self.sum_w = self.sum_w2 = self.sum_wp = self.sum_w2p = 0.0
        self.weight = min(1e300, self.weight * (1.0 + self.bet * share * gap))
        square = share * share
        self.n += 1
        self.sum_w += share
        self.sum_w2 += square
        if passed:
            self.passes += 1
            self.sum_wp += share
            self.sum_w2p += square

    def join(self, other: _Onset) -> None:
        """Take in what the other has seen."""
        for name in _SEEN:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def seen(self) -> dict[str, Any]:
        """The sums, by their names in `Sums`."""
        return {name: getattr(self, name) for name in _SEEN}

    @property
    def sums(self) -> Sums:
        return Sums(**self.seen())

    @property
    def ratio(self) -> float:
        return self.sum_wp / self.sum_w

    @classmethod
    def of_state(cls, state: Mapping[str, Any], name: str) -> _Onset | None:
        """The one of this name in a stream's state."""
        if name not in state:
            return None
        known = dict(state[name])
        n, passes = known.pop("n", 0), known.pop("passes", 0)
        # The release before left records out until all weighed the same.
        alike = {"n": n, "passes": passes, "sum_w": n, "sum_w2": n, "sum_wp": passes, "sum_w2p": passes}
        return cls(**known, **state.get("weighed", {}).get(name, alike))

    def state(self) -> dict[str, Any]:
        """All but the sums, in place of which the release before takes as many records that weigh the same."""
        n = max(1, round(self.sum_w)) if self.n else 0
        known = {"bet": self.bet, "weight": self.weight, "at": self.at}
        return known | {"n": n, "passes": min(n, round(self.sum_wp))}


#: Fields of an onset that are sums of records.
_SEEN = ("n", "passes", "sum_w", "sum_w2", "sum_wp", "sum_w2p")


class Stream:
    """The detector of one label set and instrument. Not thread-safe.

    A score counts by its share: its weight / the heaviest weight of the latest two days that had any.
    """

    def __init__(self, phase: StreamPhase = "learning", state: Mapping[str, Any] | None = None) -> None:
        """Start afresh, or go on from a stored state as if it had never stopped."""
        given = dict(state or {})
        self.phase: StreamPhase = phase
        self.models: list[str] = list(given.get("models", ()))
        #: id of the event of the alarm that is on
        self.alarm: str | None = given.get("alarm")
        self._sums = Sums(**given["sums"]) if "sums" in given else Sums()
        self._first_at: float | None = given.get("first_at")
        #: sum of the shares while it learns
        self._shares = float(given.get("kept", 0.0))
        #: what it learned: n, mean, lower, upper (of the mean), objective and target
        self.reference: dict[str, Any] | None = given.get("reference")
        self._heaviest: list[float] = given.get("heaviest", [0, 0.0, 0.0])
        #: shares a day: estimate, whole days it is made of, the running day and its sum
        self._rate: dict[str, float] = given.get("rate", {"per_day": 0.0, "days": 0, "day": 0, "today": 0})
        self._detector = EDetector.from_state(given["detector"]) if "detector" in given else None
        self._onset = _Onset.of_state(given, "onset")
        self._mirror = EDetector.from_state(given["mirror"]) if "mirror" in given else None
        self._mend = _Onset.of_state(given, "mend")
        self._reached = _Onset.of_state(given, "reached")

    def state(self) -> dict[str, Any]:
        """All of it but the phase, JSON-ready."""
        onsets = {"onset": self._onset, "mend": self._mend, "reached": self._reached}
        seen = {name: onset for name, onset in onsets.items() if onset is not None}
        parts: dict[str, Any] = {
            "models": self.models,
            "alarm": self.alarm,
            "sums": asdict(self._sums) if self.reference is None else None,
            "first_at": self._first_at,
            "kept": self._shares,
            "reference": self.reference,
            "heaviest": self._heaviest,
            "rate": self._rate,
            "detector": None if self._detector is None else self._detector.state(),
            "mirror": None if self._mirror is None else self._mirror.state(),
            **{name: onset.state() for name, onset in seen.items()},
            "weighed": {name: onset.seen() for name, onset in seen.items()} or None,
        }
        return {name: part for name, part in parts.items() if part is not None}

    # -- what it shows

    @property
    def evidence(self) -> float | None:
        """Log of the e-value that the stream is below its target; None while it is not watched."""
        return None if self._detector is None or self.phase == "ended" else self._detector.log_e

    @property
    def threshold(self) -> float | None:
        """Log of the run length: the alarm goes on when the evidence reaches it."""
        return None if self._detector is None or self.phase == "ended" else self._detector.log_threshold

    @property
    def target(self) -> float | None:
        """Pass ratio that it must keep, in (0, 1); None while it learns."""
        return None if self.reference is None else self.reference["target"]

    # -- what it is told

    def expect(self, objective: float | None, policy: ChangePolicy, streams: int) -> None:
        """Take the objective and the policy of now; `streams` share the false alarms. An alarm that is on stays."""
        if self.reference is not None and self.phase != "alarmed":
            target = _target(self.reference, objective, policy)
            if target is None:
                self.learn()
            elif target != self.reference["target"] or objective != self.reference["objective"]:
                self.reference |= {"objective": objective, "target": target}
                self._watch(target)
        if self._detector is not None:
            per_day = max(1.0, self._rate["per_day"])
            self._detector.run_length = max(_LEAST_RUN, per_day * policy.false_alarm_days * streams)

    def learn(self) -> None:
        """Forget the reference, and learn a new one from the next score on."""
        self.phase, self.alarm, self.reference = "learning", None, None
        self._sums, self._first_at, self._shares = Sums(), None, 0.0
        self._detector = self._onset = self._mirror = self._mend = self._reached = None

    def revive(self) -> None:
        """Go on after an end: with the old reference, where there is one, and no evidence."""
        if self.reference is None:
            self.learn()
        else:
            self._watch(self.reference["target"])

    def end(self) -> None:
        """Watch no more."""
        self.phase, self.alarm, self._mirror, self._mend, self._reached = "ended", None, None, None, None

    def take(self, score: WatchedScore, objective: float | None, policy: ChangePolicy) -> Happening | None:
        """Take the next score, and say what came of it."""
        at = score.timestamp.timestamp()
        share = self._share(score, at)
        if self.phase == "learning":
            return self._learn(score, at, share, objective, policy)
        if self._detector is None or self._onset is None:
            return None
        self._count(at, share)
        self._detector.update(float(score.passed), share)
        if self.phase == "alarmed":
            return self._seek_recovery(score, at, share, policy)
        self._onset.add(self._detector.objective - score.passed, score.passed, share, at)
        evidence = self._detector.log_e
        if evidence is None or evidence < self._detector.log_threshold or kish(self._onset.sums) < policy.min_records:
            return None
        return self._raise_alarm(score, policy)

    # -- how

    def _share(self, score: WatchedScore, at: float) -> float:
        day, current, before = self._heaviest
        today = int(at // DAY)
        # It goes back where a clock that ran ahead was put right, see `Store.read_changes`.
        if today != day:
            # What was heaviest long ago, such as one stray record, blinds nobody for ever. After days without records
            # it is still the latest that is known: without it what is light would count in full.
            current, before = 0.0, current
        current = max(current, score.weight)
        self._heaviest = [today, current, before]
        return score.weight / max(current, before)

    def _count(self, at: float, share: float) -> None:
        """Shares a day: a mean over whole days that had any, at most so many."""
        rate, today = self._rate, int(at // DAY)
        if today != rate["day"]:
            # A day that one heavy record blinded is none.
            if rate["days"] >= 0 and rate["today"] >= 1.0:
                rate["per_day"] += (rate["today"] - rate["per_day"]) / min(rate["days"] + 1, _RATE_DAYS)
            # The day on which it began to count was not a whole one.
            rate |= {"day": today, "today": 0, "days": rate["days"] + 1}
        rate["today"] += share

    def _learn(
        self, score: WatchedScore, at: float, share: float, objective: float | None, policy: ChangePolicy
    ) -> Happening | None:
        self._sums += Sums.of(weight=score.weight, value=float(score.passed), passed=score.passed)
        self._first_at = at if self._first_at is None else self._first_at
        self._shares += share
        estimate = pass_ratio(self._sums)
        if estimate is None or not _shows(self._sums, policy.reference_records):
            return None
        n, mean = estimate.n_effective, estimate.value
        # One-sided at this level is the end of a two-sided interval of twice the error. Exact, because the run length
        # is promised only to a stream whose mean is at least the target.
        lower, upper = clopper_pearson_interval(min(n, n * mean), n, confidence=2 * _CONFIDENCE - 1)
        reference = {"n": n, "mean": mean, "lower": lower, "upper": upper, "objective": objective}
        target = _target(reference, objective, policy)
        if target is None:
            self.learn()
            return None
        days = max(at - self._first_at, HOUR) / DAY
        self._rate = {"per_day": self._shares / days, "days": -1, "day": int(at // DAY), "today": 0}
        self.reference = reference | {"target": target}
        self._watch(target)
        return Happening(
            kind="learned",
            at=score.timestamp,
            record_id=score.record_id,
            message=f"usually {mean:.1%} pass, and {target:.1%} must",
            details=self.reference,
        )

    def _watch(self, target: float) -> None:
        run_length = self._detector.run_length if self._detector is not None else _LEAST_RUN
        self.phase, self._mirror, self._mend, self._reached = "watching", None, None, None
        self._detector = EDetector(target, run_length)
        self._onset = _Onset(bet=_BET / (1.0 - target))

    def _raise_alarm(self, score: WatchedScore, policy: ChangePolicy) -> Happening:
        assert self._detector is not None  # noqa: S101 - it has just alarmed
        assert self._onset is not None  # noqa: S101 - made with the detector
        assert self.reference is not None  # noqa: S101 - what the detector was made of
        target, seen = self._detector.objective, self._onset
        self.phase = "alarmed"
        # Over when it has left the bad level, so the mirrored detector doubts everything up to half the way back.
        halfway = _halfway(seen, target)
        self._mirror = EDetector(1.0 - halfway, max(_LEAST_MIRROR_RUN, self._rate["per_day"]))
        self._mend = _Onset(bet=_MEND_BET / halfway)
        self._reached = None
        is_objective = target == self.reference["objective"]
        since = datetime.fromtimestamp(seen.at, UTC)
        return Happening(
            kind="alarm",
            at=score.timestamp,
            record_id=score.record_id,
            message=f"{seen.ratio:.1%} pass since about {since:%Y-%m-%d %H:%M}, by {seen.n} records, and "
            f"{target:.1%} {'are its objective' if is_objective else 'or more did before'}",
            details={
                "since": since.isoformat(),
                "records": seen.n,
                "pass_ratio": seen.ratio,
                "target": target,
                "against": "objective" if is_objective else "reference",
                "evidence": self._detector.log_e,
                "threshold": self._detector.log_threshold,
                "false_alarm_days": policy.false_alarm_days,
            },
        )

    def _seek_recovery(self, score: WatchedScore, at: float, share: float, policy: ChangePolicy) -> Happening | None:
        assert self._detector is not None  # noqa: S101 - it has alarmed
        assert self._mirror is not None  # noqa: S101 - made with the alarm
        assert self._mend is not None  # noqa: S101 - made with the alarm
        assert self._onset is not None  # noqa: S101 - made with the detector
        target, seen, mend = self._detector.objective, self._onset, self._mend
        if mend.weight <= 1.0:
            # What looked like a mend was none: it tells how bad the bad level is.
            seen.join(mend)
            self._mirror.objective = 1.0 - _halfway(seen, target)
        self._mirror.update(1.0 - score.passed, share)
        mend.add(score.passed - (1.0 - self._mirror.objective), score.passed, share, at)
        if self._reached is None:
            self._reached = _Onset(bet=_MEND_BET / target)
        self._reached.add(score.passed - target, score.passed, share, at)
        evidence = self._mirror.log_e
        if evidence is None or evidence < self._mirror.log_threshold:
            return None
        # A mend may come by halves: what came before the second must not count against it for ever. It takes twice as
        # many records, for by looking so often one finds a good run where nothing was mended.
        ways = ((mend, policy.recovery_records), (self._reached, 2 * policy.recovery_records))
        mended = next((one for one, least in ways if one.ratio >= target and _shows(one.sums, least)), None)
        if mended is None:
            return None
        since = datetime.fromtimestamp(mended.at, UTC)
        happening = Happening(
            kind="recovered",
            at=score.timestamp,
            record_id=score.record_id,
            message=f"{mended.ratio:.1%} pass since about {since:%Y-%m-%d %H:%M}, by {mended.n} records",
            details={
                "since": since.isoformat(),
                "records": mended.n,
                "pass_ratio": mended.ratio,
                "target": target,
            },
        )
        self._watch(target)
        return happening


def _shows(sums: Sums, least: int) -> bool:
    """Whether so many records say what it passes; the unbiased variance costs one of them."""
    estimate = pass_ratio(sums)
    return estimate is not None and sums.n >= least and estimate.n_effective >= least - 1.01


def _halfway(seen: _Onset, target: float) -> float:
    return (min(seen.ratio, target) + target) / 2


def _target(reference: Mapping[str, Any], objective: float | None, policy: ChangePolicy) -> float | None:
    """The pass ratio that a stream must keep; None where it passes too little to get worse.

    The objective, unless the stream was below it for sure when it was learned: then it must stay as good as it was.
    """
    if policy.against == "objective" and objective is not None and reference["upper"] >= objective:
        return objective
    lower: float = reference["lower"]
    return lower if lower >= _LEAST_REFERENCE else None
