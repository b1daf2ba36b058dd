"""The gate: which version of each rubric production is scored with while a changed one waits for its calibration.

A rubric says by its field `gate` what level a calibration of this very question and judge must reach. Until one has,
the version that was active before goes on, and a share of the records may be scored with both (the bridge).
docs/explanation/gate.md says why it is done this way.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from assay.errors import CalibrationError, ConfigError
from assay.judges import ASKING, OPENAI_BASE_URL, describe_judge, lacks_key, resolve
from assay.records import now
from assay.rubrics import JudgeSpec, Rubric
from assay.sampling import sample_unit
from assay.store import RubricVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from assay.calibration import Calibration
    from assay.judges import JudgeSettings
    from assay.store import Store, VersionState

_log = logging.getLogger(__name__)

#: How long after a version became active the one before it is still asked on the bridge's share.
BRIDGE_AFTER = timedelta(days=1)


# -- the decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A rubric and the judge that it is asked of."""

    rubric: Rubric
    judge: str
    judge_fingerprint: str

    @classmethod
    def of(cls, rubric: Rubric, settings: JudgeSettings) -> Version:
        """The version that `rubric` is with these settings of the judge.

        Raises:
            SettingsError: the judge is not configured rightly.
        """
        judge, fingerprint = describe_judge(rubric.judge, settings)
        return cls(rubric=rubric, judge=judge, judge_fingerprint=fingerprint)

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others of its name, and what a calibration must be of."""
        return self.rubric.hash, self.judge_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether production may be scored with a version, and why, in one sentence without its full stop."""

    opens: bool
    reason: str


def decide(
    version: Version, calibration: Calibration | None, *, stale: str | None = None, in_use: bool = False
) -> Decision:
    """Whether `version` may be scored with.

    Args:
        calibration: the latest one of this question by this judge.
        stale: why an audit found that it holds no more, None if none did.
        in_use: production is scored with it now. A gate holds back what is new; it takes nothing away.
    """
    gate = version.rubric.gate
    if gate == "none":
        return Decision(opens=True, reason="its gate asks for nothing")
    passed, reason = _passes(version, calibration, stale)
    if passed or not in_use:
        return Decision(opens=passed, reason=reason)
    return Decision(opens=True, reason=f"it was in use already; {reason}")


def _passes(version: Version, calibration: Calibration | None, stale: str | None) -> tuple[bool, str]:
    from assay.calibration import LEVELS

    gate = version.rubric.gate
    if calibration is None or (calibration.rubric_hash, calibration.judge_fingerprint) != version.key:
        return False, "there is no calibration of this question by this judge"
    if stale is not None:
        return False, f"its calibration is stale: {stale}"
    if LEVELS.index(calibration.level) >= LEVELS.index(gate):
        return True, f"its calibration is {calibration.level}, and its gate asks for {gate}"
    why = f": {calibration.reasons[0]}" if calibration.reasons else ""
    return False, f"its calibration is {calibration.level}, and its gate asks for {gate}{why}"


# -- what a record owes


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One rubric name: the version of the rubric file, and the one that was active before it."""

    own: Rubric
    #: None where there was none, or where it cannot be asked any more
    previous: Rubric | None = None
    is_open: bool = True
    #: a share of the records is scored with both
    bridged: bool = False

    @property
    def active(self) -> Rubric | None:
        """The version that every record is scored with; None when none may be."""
        return self.own if self.is_open else self.previous

    def owed(self, *, on_bridge: bool, has: Callable[[Rubric], bool]) -> list[Rubric]:
        """The versions that a record owes an outcome to, the active one first."""
        versions: tuple[Rubric | None, ...]
        versions = (self.own, self.previous) if self.is_open else (self.previous, self.own)
        if not (self.bridged and on_bridge):
            versions = versions[:1]
            if self.is_open and self.previous is not None and has(self.previous) and not has(self.own):
                # It had its outcome before the switch. Another one would count the record twice.
                versions = (self.previous,)
        return [version for version in versions if version is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The rubrics that records owe outcomes to, at one moment. A batch is planned by one roster from first to last."""

    lines: tuple[Line, ...]
    #: of the records, [0, 1]
    bridge_share: float = 0.0

    @classmethod
    def of(cls, rubrics: Iterable[Rubric]) -> Roster:
        """These rubrics, without gates."""
        return cls(lines=tuple(Line(own=rubric) for rubric in rubrics))

    def owed(self, record_id: str, has: Callable[[Rubric], bool]) -> list[Rubric]:
        """The rubrics that a record owes an outcome to. The same record is on the bridge in every process.

        Args:
            record_id: of the record.
            has: whether an outcome of the record under this rubric is stored.
        """
        on_bridge = self.bridge_share > 0.0 and sample_unit(f"bridge\0{record_id}") < self.bridge_share
        return [rubric for line in self.lines for rubric in line.owed(on_bridge=on_bridge, has=has)]


# -- the gate of a worker


class Gate:
    """Decides by the store's calibrations, and notes in the store what was decided. Thread-safe once it is started.

    While it runs a gate only opens: a file that was changed, and whatever else there is to decide, waits for a start.

    Args:
        store: of calibrations and rubric versions.
        rubrics: of the rubric files.
        settings: of the default judge.
        bridge_share: of the records that are scored with both versions, in [0, 1]: while one waits, and for a day
            after it became active.
        clock: the present, aware.
    """

    def __init__(
        self,
        store: Store,
        rubrics: Sequence[Rubric],
        settings: JudgeSettings,
        *,
        bridge_share: float = 0.0,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._versions = [Version.of(rubric, settings) for rubric in rubrics]
        self._settings = settings
        self._share = bridge_share
        self._clock = clock
        self._lock = threading.Lock()
        self._decoded: dict[str, Calibration | CalibrationError] = {}
        self._reasons: dict[str, str] = {}
        self._roster = Roster(lines=(), bridge_share=bridge_share)
        self._since: dict[str, datetime] = {}

    @property
    def roster(self) -> Roster:
        """What records owe now."""
        return self._roster

    @property
    def rubrics(self) -> list[Rubric]:
        """Every version that may be asked while this gate runs, to build the judges by."""
        return [version for line in self._roster.lines for version in (line.own, line.previous) if version is not None]

    def start(self) -> None:
        """Decide on every rubric. Call it once, before anything is planned.

        Raises:
            StoreError: the store is away.
        """
        for version in self._versions:
            import_calibration(self._store, version)
        stored = self._store.rubric_versions()
        calibrations = self._calibrations(self._versions)
        lines = []
        for version in self._versions:
            known = [other for other in stored if other.rubric == version.rubric.name]
            lines.append(self._decide(version, known, calibrations.get(version.key, (None, None))))
        self._roster = self._with_bridges(lines)

    def refresh(self) -> None:
        """Look again whether what waits may go on. Costs nothing while nothing waits.

        Raises:
            StoreError: the store is away; nothing has changed.
        """
        with self._lock:
            waiting = [v for v, line in zip(self._versions, self._roster.lines, strict=True) if not line.is_open]
            opened = set()
            if waiting:
                calibrations = self._calibrations(waiting)
                for version in waiting:
                    calibration, stale = calibrations.get(version.key, (None, None))
                    decision = decide(version, calibration, stale=stale)
                    if decision.opens or decision.reason != self._reasons[version.rubric.name]:
                        self._place(version, decision)
                    if decision.opens:
                        opened.add(version.rubric.name)
            self._roster = self._with_bridges(
                replace(line, is_open=line.is_open or line.own.name in opened) for line in self._roster.lines
            )

    # -- deciding

    def _decide(
        self, version: Version, known: Sequence[RubricVersion], found: tuple[Calibration | None, str | None]
    ) -> Line:
        rubric = version.rubric
        same = _same(version, known)
        in_use = is_in_use(self._store, version, known)
        decision = decide(version, found[0], stale=found[1], in_use=in_use)
        if decision.opens and in_use and same is not None and same.since is not None:
            self._since[rubric.name] = same.since
        self._place(version, decision)
        line = Line(own=rubric, is_open=decision.opens)
        if rubric.gate == "none" and self._share == 0.0:
            return line
        before = [(v.activated_at, v) for v in known if v is not same and v.activated_at is not None]
        previous = self._revived(max(before, key=itemgetter(0))[1]) if before else None
        if previous is None and not decision.opens:
            _log.error("nothing is scored with this rubric", extra={"rubric": rubric.name, "reason": decision.reason})
        return replace(line, previous=previous)

    def _place(self, version: Version, decision: Decision) -> None:
        rubric = version.rubric
        state: VersionState = "active" if decision.opens else "waiting"
        self._store.place_rubric(
            RubricVersion(
                rubric=rubric.name,
                rubric_version=rubric.revision,
                rubric_hash=rubric.hash,
                judge=version.judge,
                judge_fingerprint=version.judge_fingerprint,
                body=json.dumps(pinned(rubric, self._settings).to_dict()),
                state=state,
                reason=decision.reason,
            )
        )
        self._reasons[rubric.name] = decision.reason
        if decision.opens:
            self._since.setdefault(rubric.name, self._clock())
        # Without a gate there is nothing to tell.
        opened = _log.debug if rubric.gate == "none" else _log.info
        say = opened if decision.opens else _log.warning
        said = {"rubric": rubric.name, "version": rubric.revision, "judge": version.judge, "reason": decision.reason}
        say(f"rubric is {state}", extra=said)

    def _revived(self, stored: RubricVersion) -> Rubric | None:
        """The rubric of a stored version; None when it would not be the same question to the same judge any more."""
        why: object = "this assay or these settings would ask something else"
        try:
            rubric = Rubric.from_dict(json.loads(stored.body))
            version = Version.of(rubric, self._settings)
            if version.key == (stored.rubric_hash, stored.judge_fingerprint):
                if not version.judge.startswith("openai:") or not lacks_key(resolve(rubric.judge, self._settings)):
                    return rubric
                why = "its judge needs a key"
        except (ValueError, ConfigError) as error:
            why = error
        _log.warning(
            "the version before cannot be asked any more",
            extra={"rubric": stored.rubric, "version": stored.rubric_version, "reason": str(why)},
        )
        return None

    def _with_bridges(self, lines: Iterable[Line]) -> Roster:
        """A bridge stands while a version waits, and for a while after it became active."""
        limit = self._clock() - BRIDGE_AFTER
        return Roster(
            lines=tuple(
                replace(line, bridged=not line.is_open or self._since.get(line.own.name, limit) > limit)
                for line in lines
            ),
            bridge_share=self._share,
        )

    # -- reading calibrations

    def _calibrations(
        self, versions: Sequence[Version]
    ) -> Mapping[tuple[str, str], tuple[Calibration | None, str | None]]:
        """The latest calibration of each gated version, and why it is stale."""
        wanted = {version.key for version in versions if version.rubric.gate != "none"}
        if not wanted:
            return {}
        rows = [
            row for row in self._store.calibrations(bodies=False) if (row.rubric_hash, row.judge_fingerprint) in wanted
        ]
        missing = {row.calibration_id for row in rows} - self._decoded.keys()
        for calibration_id, body in self._store.calibration_bodies(missing).items():
            self._decoded[calibration_id] = _decoded(body)
        found: dict[tuple[str, str], tuple[Calibration | None, str | None]] = {}
        for row in rows:
            decoded = self._decoded.get(row.calibration_id)
            calibration = None if isinstance(decoded, CalibrationError) else decoded
            found[row.rubric_hash, row.judge_fingerprint] = calibration, row.reason
        return found


def _same(version: Version, known: Iterable[RubricVersion]) -> RubricVersion | None:
    return next((v for v in known if (v.rubric_hash, v.judge_fingerprint) == version.key), None)


def is_in_use(store: Store, version: Version, known: Sequence[RubricVersion]) -> bool:
    """Whether production is scored with a version; `known` are the stored ones of its rubric."""
    same = _same(version, known)
    if known or version.rubric.gate == "none":
        return same is not None and same.state == "active"
    # Before its first gate, what production was scored with is known by its scores alone.
    return store.has_scores(*version.key)


def pinned(rubric: Rubric, settings: JudgeSettings) -> Rubric:
    """The rubric with its judge written out, so that it asks the same one after the settings have changed."""
    judge = resolve(rubric.judge, settings)
    if judge.engine not in ASKING:
        return replace(rubric, judge=JudgeSpec(engine=judge.engine))
    base_url = judge.base_url or OPENAI_BASE_URL
    return replace(
        rubric,
        judge=JudgeSpec(
            engine=judge.engine,
            metric=judge.metric,  # type: ignore[arg-type]
            model=judge.model,
            embedding_model=judge.embedding_model if judge.engine == "ragas" else None,
            # A user and a password in it belong in the settings, not in the database.
            base_url=None if "@" in base_url else base_url,
            temperature=judge.temperature,
            max_tokens=judge.max_tokens,
        ),
    )


def _decoded(body: str) -> Calibration | CalibrationError:
    from assay.calibration import Calibration

    try:
        return Calibration.from_json(body)
    except CalibrationError as error:
        _log.warning("a stored calibration cannot be used: %s", error)
        return error


# -- before a change is deployed


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFinding:
    """What a gate would say of a version."""

    version: Version
    decision: Decision


def check_gates(
    rubrics: Sequence[Rubric], settings: JudgeSettings, *, store: Store | None = None, directory: Path | None = None
) -> list[GateFinding]:
    """What the gate of each rubric says, by the calibrations of the store and those in files. Changes nothing.

    Args:
        rubrics: of the rubric files.
        settings: of the default judge.
        store: None where there is none, as in a CI job.
        directory: calibration files, besides those that the rubrics' own field `calibration` names.

    Raises:
        CalibrationError: a calibration file cannot be read. StoreError: the store is away.
    """
    stored = [] if store is None else store.calibrations()
    known = [] if store is None else store.rubric_versions()
    kept = read_calibrations(directory) if directory is not None else []
    findings = []
    for version in (Version.of(rubric, settings) for rubric in rubrics):
        path = calibration_path(version.rubric)
        files = [*kept, *(read_calibrations(path) if path is not None else ())]
        latest = next((row for row in stored if (row.rubric_hash, row.judge_fingerprint) == version.key), None)
        found: list[tuple[Calibration | None, str | None]] = [
            # What an audit found holds for the file as well.
            (made, latest.reason if latest is not None and latest.calibration_id == made.calibration_id else None)
            for made in files
            if (made.rubric_hash, made.judge_fingerprint) == version.key
        ]
        decoded = None if latest is None else _decoded(latest.body)
        if latest is not None and not isinstance(decoded, CalibrationError):
            found.append((decoded, latest.reason))
        same_name = [other for other in known if other.rubric == version.rubric.name]
        in_use = store is not None and is_in_use(store, version, same_name)
        decisions = [decide(version, made, stale=stale, in_use=in_use) for made, stale in found or [(None, None)]]
        best = next((decision for decision in decisions if decision.opens), decisions[0])
        findings.append(GateFinding(version=version, decision=best))
    return findings


# -- calibration files


def read_calibrations(path: Path) -> list[Calibration]:
    """The calibration in a file, or those in the `*.json` files of a directory.

    Raises:
        CalibrationError: one cannot be read.
    """
    from assay.calibration import Calibration

    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [Calibration.read(file) for file in files]


def calibration_path(rubric: Rubric) -> Path | None:
    """The file or directory that the field `calibration` names: beside the rubric's file, or else from here."""
    if rubric.calibration is None:
        return None
    places = [Path(rubric.calibration)]
    if rubric.path is not None:
        places.insert(0, rubric.path.parent / rubric.calibration)
    return next((place for place in places if place.exists()), None)


def import_calibration(store: Store, version: Version) -> None:
    """Bring the calibration file that came with a rubric into the store, unless it is there already.

    One that is of another question or judge, or cannot be used, is passed over.
    """
    path = calibration_path(version.rubric)
    if path is None:
        return
    try:
        found = [c for c in read_calibrations(path) if (c.rubric_hash, c.judge_fingerprint) == version.key]
    except CalibrationError as error:
        _log.warning("the calibration of %s cannot be used: %s", version.rubric.name, error)
        return
    known = store.calibration_bodies([calibration.calibration_id for calibration in found])
    for calibration in sorted(found, key=lambda c: c.created_at):
        if calibration.calibration_id not in known:
            store.save_calibration(calibration)
