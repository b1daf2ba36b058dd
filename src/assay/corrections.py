"""What a scrape says of calibrations: which one belongs to the scores of a window, and what people would have passed.

The rule is `assay.calibration.correct`; here is what it is given. docs/decisions/0006-corrected-gauges.md says why.
numpy is loaded with the first calibration: an exporter that has none does without.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from assay.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from assay.calibration import Calibration, Corrected, ErrorRates, Method, State
    from assay.store import RubricVersion, Store
    from assay.windows import Estimate, Sums

_log = logging.getLogger(__name__)

#: What measured: the hash of a rubric and the fingerprint of a judge.
Instrument = tuple[str, str]

#: Why a correction is in its state, "" when that is `ok`. A closed set, because it is a label.
Reason = Literal[
    "",
    "no_calibration",
    "few_labels",
    "weak_judge",
    "mixed_judges",
    "small_window",
    "judge_changed",
    "wide_interval",
    "failed_audit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A calibration that counts."""

    calibration: Calibration
    #: an audit has found that it holds no more
    stale: bool

    def levels(self) -> dict[str, bool]:
        """Each level there is, lowest first, and whether it is this one's."""
        from assay.calibration import LEVELS

        return {level: level == self.calibration.level for level in LEVELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A window as people would see it; `estimate` is None where that cannot be said."""

    state: State
    method: Method
    reason: Reason
    estimate: Estimate | None = None
    #: its interval as if the calibration were exact
    window_lower: float | None = None
    window_upper: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which traffic a window is of, to tell whether labels are a sample of it."""

    app: str
    #: all of the app, not one cohort of it
    is_whole_app: bool
    #: epoch seconds
    start: float
    end: float


_NO_CALIBRATION = Correction(state="no_calibration", method="none", reason="no_calibration")
_MIXED = Correction(state="refused", method="none", reason="mixed_judges")

#: calibration id, stale, fresh, the window
_MemoKey = tuple[str, bool, bool, "Sums"]


class Corrections:
    """The calibrations of one moment, and what they make of windows.

    `following` keeps what has been decoded and computed, so that a scrape costs little while little changes. Not for
    several threads at once.
    """

    def __init__(self) -> None:
        self._known: dict[Instrument, Known] = {}
        self._decoded: dict[str, Calibration | None] = {}
        self._memo: dict[_MemoKey, Correction] = {}
        self._used: dict[_MemoKey, Correction] = {}
        #: those that are active or wait
        self.versions: list[RubricVersion] = []
        #: see `behind`
        self.behind: frozenset[Instrument] = frozenset()

    def following(self, store: Store) -> Corrections:
        """The same as of now: a calibration that was saved meanwhile counts from here on.

        Raises:
            StoreError: the store is away.
        """
        now = Corrections()
        now._memo = self._used
        now.versions = store.rubric_versions(retired=False)
        now.behind = behind(now.versions)
        rows = store.calibrations(bodies=False)
        kept = {row.calibration_id for row in rows}
        now._decoded = {key: decoded for key, decoded in self._decoded.items() if key in kept}
        for calibration_id, body in store.calibration_bodies(kept - now._decoded.keys()).items():
            now._decoded[calibration_id] = _decode(body)
        for row in rows:
            calibration = now._decoded.get(row.calibration_id)
            instrument = (row.rubric_hash, row.judge_fingerprint)
            # What the body says is what counts, and the columns are only where to find it.
            if calibration and (calibration.rubric_hash, calibration.judge_fingerprint) == instrument:
                now._known[instrument] = Known(calibration=calibration, stale=row.state == "stale")
        return now

    def of(self, instrument: Instrument) -> Known | None:
        """The calibration of an instrument, None when it has none."""
        return self._known.get(instrument)

    def correct(self, parts: Mapping[Instrument, Sums], place: Place) -> Correction | None:
        """What people would have passed in a window, from its sums by instrument; None when nothing was scored."""
        scored = {instrument: sums for instrument, sums in parts.items() if sums.n}
        if len(scored) != 1:
            # Two judges of one name: neither's error rates are those of the mixture.
            return _MIXED if scored else None
        ((instrument, sums),) = scored.items()
        known = self.of(instrument)
        if known is None:
            return _NO_CALIBRATION
        from assay.calibration import correct

        calibration = known.calibration
        fresh = is_fresh(calibration, place)
        key = (calibration.calibration_id, known.stale, fresh, sums)
        found = self._memo.get(key)
        if found is None:
            # The seed is always the same: the same window gives the same digits at every scrape and in every exporter.
            corrected = correct(sums, calibration.rates, fresh=fresh, stale=known.stale, seed=0)
            found = Correction(
                state=corrected.state,
                method=corrected.method,
                reason=_reason(corrected, calibration.rates),
                estimate=corrected.estimate,
                window_lower=corrected.window_lower,
                window_upper=corrected.window_upper,
            )
        self._used[key] = found
        return found

    def shown(self, instruments: Iterable[Instrument]) -> list[Known]:
        """The calibrations of these instruments, and of the rubrics that are active or wait; one for each label set.

        Where judges of one name share the labels, that of the newest calibration; none of what is `behind`.
        """
        wanted = set(instruments)
        wanted |= {(version.rubric_hash, version.judge_fingerprint) for version in self.versions}
        found = [known for instrument in wanted - self.behind if (known := self.of(instrument)) is not None]
        found.sort(key=lambda known: (known.calibration.created_at, known.calibration.calibration_id))
        return list(
            {(k.calibration.rubric, k.calibration.rubric_version, k.calibration.judge): k for k in found}.values()
        )


def is_fresh(calibration: Calibration, place: Place) -> bool:
    """Whether the labels are a probability sample of this window's own traffic.

    They must come from this app and from no other, from inside the window, and be spread over half of it at least. A
    cohort is never taken for the app that it is a part of.
    """
    first, last = calibration.recorded_from, calibration.recorded_to
    if calibration.selection != "probability" or calibration.synthetic or first is None or last is None:
        return False
    if not place.is_whole_app or calibration.apps != (place.app,):
        return False
    start, end = first.timestamp(), last.timestamp()
    return place.start <= start and end < place.end and end - start >= (place.end - place.start) / 2


def behind(versions: Iterable[RubricVersion]) -> frozenset[Instrument]:
    """What waits under the labels of an active version, such as its own judge at another temperature.

    The labels mean the active one, which production is held to: no gauge may show the other under them.
    """
    known = list(versions)
    active = {(v.rubric, v.rubric_version, v.judge) for v in known if v.state == "active"}
    return frozenset(
        (v.rubric_hash, v.judge_fingerprint)
        for v in known
        if v.state == "waiting" and (v.rubric, v.rubric_version, v.judge) in active
    )


def body_of(version: RubricVersion) -> Mapping[str, Any]:
    """The fields of a version's rubric file; empty when they cannot be read."""
    try:
        body = json.loads(version.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _reason(found: Corrected, rates: ErrorRates) -> Reason:
    from assay.calibration.decision import MIN_CLASS, MIN_WINDOW

    match found.state:
        case "ok":
            return ""
        case "too_wide":
            return "wide_interval"
        case "stale":
            return "failed_audit"
        case "refused":
            small = found.raw is None or found.raw.n_effective < MIN_WINDOW
            return "small_window" if small else "judge_changed"
    few = min(rates.counts.passes, rates.counts.fails) < MIN_CLASS
    return "few_labels" if few else "weak_judge"


def _decode(body: str) -> Calibration | None:
    from assay.calibration import Calibration

    try:
        return Calibration.from_json(body)
    except CalibrationError as error:
        _log.warning("a stored calibration cannot be used: %s", error)
        return None
