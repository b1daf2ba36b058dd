"""Every error assay raises, split by what the caller can do about it.

    AssayError
    ├ ConfigError          a person must mend a file or a setting; the CLI exits with 2, nothing is retried
    │  ├ SettingsError     an environment variable or option
    │  ├ RubricError       a rubric file: path, line and field
    │  ├ LabelError        a label file or export: path, line and field
    │  ├ LabelErrors       every LabelError of one file
    │  ├ CalibrationError  a calibration file that cannot be used
    │  └ MissingExtraError an optional dependency: `pip install assay[worker]`
    ├ RecordError          this record can never be scored as it is; it is kept as a dead letter
    ├ JudgeError           a judge call that gave no verdict; carries the failure kind
    │  └ BudgetSpentError  it was not made, because a budget does not allow it
    ├ VerdictError         a judge answered, but not with a verdict of the scale
    ├ NoVerdictsError      not one labelled record has a verdict: nothing can be measured
    ├ ProcessError         a process that this one started ended by itself
    ├ QueueError           Redis is away or refuses writes; the caller tries again later
    ├ StoreError           the database is away or refuses writes; the caller tries again later
    │  └ SchemaError       it is there, but its tables are not those that this assay needs
    ├ StoreDataError       the database refuses what it was given; the same call can never succeed
    ├ SinkError            a sink is away or refuses us; the caller tries again later
    └ SourceError          a trace store is away, refuses us, or answers with what cannot be read

Standard library only: the app-side client imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from assay.records import FailureKind, Usage


class AssayError(Exception):
    """Base of every error that assay raises on purpose."""


class ConfigError(AssayError):
    """Something a person configured is wrong; the message says what, where and the mend."""


class SettingsError(ConfigError):
    """A setting (environment variable or option) is missing or not usable."""


class FileError(ConfigError):
    """A file that a person wrote is wrong. `str()` is one line: `path:line: field: message`.

    `line` is 1-based, or None when the whole file is meant; `field` is a dotted path such as
    `scale.levels[2].anchor`, or None.
    """

    def __init__(self, message: str, *, path: Path | str, line: int | None = None, field: str | None = None) -> None:
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(": ".join(part for part in (where, field, message) if part))
        self.message = message
        self.path = path
        self.line = line
        self.field = field


class RubricError(FileError):
    """A rubric file is wrong."""


class LabelError(FileError):
    """A label file, or an export of labels, is wrong."""


class LabelErrors(ConfigError):  # noqa: N818 - many of them
    """Everything that is wrong with a label file: `errors`, in the order of its lines. `str()` is a line for each."""

    #: As many mistakes of one file as anyone mends in one go.
    SHOWN = 100

    def __init__(self, errors: Sequence[LabelError]) -> None:
        lines = [str(error) for error in errors[: self.SHOWN]]
        rest = len(errors) - len(lines)
        super().__init__("\n".join([*lines, *([f"and {rest:,} more like these"] if rest else [])]))
        self.errors = tuple(errors)


class CalibrationError(ConfigError):
    """A calibration cannot be read, written or trusted. `str()` is `path: message`, or the message without a path."""

    def __init__(self, message: str, *, path: Path | str | None = None) -> None:
        super().__init__(f"{path}: {message}" if path is not None else f"the calibration {message}")
        self.message = message
        self.path = path


class MissingExtraError(ConfigError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'assay[{extra}]'")
        self.extra = extra
        self.package = package


#: Why a record, or a message that should hold some, cannot be read. A dead letter has one of these or a failure kind.
RECORD_REASONS = ("invalid", "unknown_version", "undecodable", "too_large")


class RecordError(AssayError, ValueError):
    """A record breaks the wire format. `field` is a dotted path, or None for the whole message.

    Also a ValueError, so that pydantic reports it as a validation error.
    """

    def __init__(self, message: str, *, field: str | None = None, reason: str = "invalid") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field
        #: one of RECORD_REASONS
        self.reason = reason


class JudgeError(AssayError):
    """A judge call gave no verdict.

    `kind` says why and decides whether another try can help (`records.TRANSIENT`); `retry_after_seconds`
    is what the endpoint asked for, if anything; `usage` is what the failed call cost all the same; `free` says that
    for certain no model ran; `unasked` that no request was made at all, or
    that its endpoint is down: it uses up no try.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        usage: Usage | None = None,
        free: bool = False,
        unasked: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.unasked = unasked
        self.retry_after_seconds = retry_after_seconds
        self.usage = usage
        self.free = free


class BudgetSpentError(JudgeError):
    """A call was not made, because a budget does not allow it; `rubrics` are the names that this budget covers."""

    def __init__(self, message: str, *, rubrics: Sequence[str]) -> None:
        super().__init__("budget", message, free=True)
        self.rubrics = tuple(rubrics)


class VerdictError(AssayError):
    """A judge's answer is not a verdict of the rubric's scale; `kind` is `unparsable` or `off_scale`."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind


class NoVerdictsError(AssayError):
    """Not one labelled record has a verdict, so nothing can be measured; the message says what became of them."""


class ProcessError(AssayError):
    """A process that this one started ended by itself; its log says why."""


class QueueError(AssayError):
    """Redis is unreachable, full or read-only; nothing was changed, try again later."""


class StoreError(AssayError):
    """The database is unreachable, full or not migrated; nothing was committed, try again later."""


class SchemaError(StoreError):
    """The database has no tables yet, or those of another version: `assay db upgrade`, or upgrade assay."""


class StoreDataError(AssayError):
    """The database refuses what it was given; the same call can never succeed."""


class SinkError(AssayError):
    """A sink is away, overloaded, or refuses us: nothing of the batch counts as delivered, it is tried again later.

    `after_seconds` is what the sink asked for, if anything. `suspect`: one of the batch may be what it stumbles over.
    `unauthorized`: it does not take our credentials, which a person must mend.
    """

    def __init__(
        self,
        message: str,
        *,
        after_seconds: float | None = None,
        suspect: bool = False,
        unauthorized: bool = False,
    ) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds
        self.suspect = suspect
        self.unauthorized = unauthorized


class SourceError(AssayError):
    """A trace store that is pulled from is away, refuses us, or answers with what cannot be read."""
