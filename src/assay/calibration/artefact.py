"""The frozen calibration: what labels said about one judge under one rubric, in a file that proves its own content.

It is bound to the rubric's hash and the judge's fingerprint. Its id is a hash of all it says, so that two equal
calibrations are one, whenever they were made, and one that was changed is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.calibration.level import LEVELS, Level
from assay.calibration.rates import ErrorRates
from assay.calibration.score_map import ScoreMap
from assay.calibration.statistic import Statistic
from assay.calibration.threshold import Threshold
from assay.errors import CalibrationError
from assay.files import read_file

if TYPE_CHECKING:
    from assay.calibration.rates import Selection
    from assay.calibration.threshold import Purpose

#: Version of the JSON form. Another version is refused: its numbers may mean something else.
CALIBRATION_VERSION = 1

#: Of a file; the greatest are a few hundred kilobytes.
_MOST_BYTES = 20_000_000
_HEX = re.compile(r"[0-9a-f]{64}")
_MOMENTS = ("created_at", "labelled_from", "labelled_to", "recorded_from", "recorded_to")
#: In the file, but not part of the identity.
_UNHASHED = ("calibration_id", "created_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingCost:
    """What judging one record took, on average over `n` records; None where the endpoint did not say."""

    n: int
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    cost_usd: float | None = None
    latency_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is known of one judge under one rubric, by one set of labels. Raises ValueError for what cannot be one."""

    rubric: str
    #: version and hash in short, the value of the metric label `rubric_version`
    rubric_version: str
    rubric_hash: str
    judge: str
    judge_fingerprint: str
    #: when it was first made, aware; not part of `calibration_id`
    created_at: datetime
    #: earliest and latest label, aware; None when the labels do not say
    labelled_from: datetime | None
    labelled_to: datetime | None
    #: earliest and latest interaction that was labelled, aware, and their apps; None and empty when that is not known
    recorded_from: datetime | None = None
    recorded_to: datetime | None = None
    apps: tuple[str, ...] = ()
    #: of the label file
    labels_sha256: str
    #: who labelled: `human`, `author`, `model`, ...
    annotator_kind: str
    annotators: int
    #: the labelled records were written for the purpose
    synthetic: bool
    selection: Selection
    #: what several annotators say together: majority, mean, any_fail or expert:NAME
    gold: str
    #: labelled records with a verdict, at least 1
    n: int
    #: labelled records without one, by reason: `failed:timeout`, `not_applicable:missing_contexts`
    left_out: Mapping[str, int]
    rates: ErrorRates
    #: None below the number of labels that a map takes
    score_map: ScoreMap | None
    thresholds: Mapping[Purpose, Threshold]
    level: Level
    #: why this level, one sentence each
    reasons: tuple[str, ...]
    #: lower bound of fail recall that the level was asked for
    min_fail_recall: float
    kappa: Statistic
    fail_recall: Statistic
    fail_precision: Statistic
    auc: Statistic
    #: half the interval of a corrected window of 1,000 records, by fresh labels like these
    level_half_width: float | None
    cost: JudgingCost

    def __post_init__(self) -> None:
        for name in ("rubric_hash", "judge_fingerprint", "labels_sha256"):
            if not _HEX.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is not a SHA-256 in hex")
        for name in _MOMENTS:
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} has no time zone")
        if self.level not in LEVELS:
            raise ValueError(f"level {self.level!r} is not one of {', '.join(LEVELS)}")
        if self.n < 1 or self.n != self.rates.n:
            raise ValueError(f"n is {self.n}, but the rates are of {self.rates.n} records")

    @property
    def youden(self) -> Statistic:
        """Sensitivity + specificity - 1: the slope of the judge's pass ratio on the true one."""
        return self.rates.youden

    @property
    def bias(self) -> Statistic:
        """Judge less labels, in pass ratio."""
        return self.rates.bias

    @property
    def file_name(self) -> str:
        """`<rubric>.<hash8>.<fingerprint8>.json`: one name for one rubric version and judge."""
        return f"{self.rubric}.{self.rubric_hash[:8]}.{self.judge_fingerprint[:8]}.json"

    @cached_property
    def calibration_id(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all fields but `created_at`."""
        return _identity(self._body())

    def to_json(self) -> str:
        """The file's text: JSON that people can read and compare; `from_json` takes it back."""
        body = {"calibration_version": CALIBRATION_VERSION, "calibration_id": self.calibration_id} | self._body()
        text = json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # Readable where it goes; escaped where somebody's name holds what UTF-8 cannot carry.
        return text if _is_utf8(text) else json.dumps(body, indent=2, allow_nan=False) + "\n"

    def _body(self) -> dict[str, Any]:
        body = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        # As a reader of the JSON has it: no tuples, no keys but texts.
        decoded: dict[str, Any] = json.loads(json.dumps(body, allow_nan=False))
        return decoded

    @classmethod
    def from_json(cls, text: str | bytes, *, path: Path | str | None = None) -> Calibration:
        """The calibration that `to_json` wrote; `path` is what errors name.

        Raises:
            CalibrationError: not such JSON, of another version, or changed since.
        """
        try:
            body = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"is not JSON: {error}", path=path) from None
        if not isinstance(body, dict) or "calibration_version" not in body:
            raise CalibrationError("is no calibration: it has no `calibration_version`", path=path)
        version = body.pop("calibration_version")
        if version != CALIBRATION_VERSION or isinstance(version, bool):
            raise CalibrationError(
                f"is of version {version!r}, and this assay knows {CALIBRATION_VERSION}: calibrate again", path=path
            )
        claimed = body.get("calibration_id")
        body = {name: value for name, value in body.items() if name != "calibration_id"}
        try:
            is_as_made = claimed == _identity(body)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"is no calibration: {error}", path=path) from None
        if not is_as_made:
            raise CalibrationError("was changed since it was made: its id does not fit it; calibrate again", path=path)
        try:
            return cls(**_decoded(body))
        except KeyError as error:
            raise CalibrationError(f"is no calibration: it lacks {error}", path=path) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"is no calibration: {error}", path=path) from None

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """The calibration in a file.

        Raises:
            CalibrationError: it cannot be read, or see `from_json`.
        """
        try:
            text = read_file(path, _MOST_BYTES)
        except OSError as error:
            raise CalibrationError(f"cannot be read: {error.strerror}", path=path) from None
        return cls.from_json(text, path=path)

    def save(self, directory: Path) -> Path:
        """Write the file `file_name` into `directory`, whole or not at all; one that says the same stays untouched.

        Raises:
            CalibrationError: it cannot be written.
        """
        path = directory / self.file_name
        if path.exists():
            with contextlib.suppress(CalibrationError):
                if Calibration.read(path).calibration_id == self.calibration_id:
                    return path
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write_whole(path, self.to_json())
        except OSError as error:
            raise CalibrationError(f"cannot be written: {error.strerror}", path=path) from None
        return path


def _identity(body: Mapping[str, Any]) -> str:
    hashed = {name: value for name, value in body.items() if name not in _UNHASHED}
    hashed["calibration_version"] = CALIBRATION_VERSION
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _decoded(body: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of a JSON body; raises whatever a wrong form comes to."""
    decoded = dict(body)
    for name in _MOMENTS:
        if decoded.get(name) is not None:
            decoded[name] = datetime.fromisoformat(decoded[name])
    decoded["apps"] = tuple(decoded.get("apps", ()))
    for name in ("kappa", "fail_recall", "fail_precision", "auc"):
        decoded[name] = Statistic(**decoded[name])
    decoded["rates"] = ErrorRates.from_dict(decoded["rates"])
    decoded["score_map"] = None if decoded["score_map"] is None else ScoreMap.from_dict(decoded["score_map"])
    decoded["thresholds"] = {purpose: _threshold(data) for purpose, data in decoded["thresholds"].items()}
    decoded["reasons"] = tuple(decoded["reasons"])
    decoded["cost"] = JudgingCost(**decoded["cost"])
    return decoded


def _threshold(data: Mapping[str, Any]) -> Threshold:
    measured = {name: Statistic(**data[name]) for name in ("fail_recall", "fail_precision")}
    return Threshold(**{**data, **measured})


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _write_whole(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files private; this one is to be read by others and committed.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
