"""JSON lines on standard output or in a file: structured logs with trace ids, fit for Loki and its like."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import threading
from pathlib import Path  # noqa: TC003 - pydantic reads it at run time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from assay.errors import SinkError
from assay.sinks import Annotation, Delivered, SinkSettings
from assay.sinks._document import document
from assay.sinks._http import json_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.sinks import Delivery


class Settings(SinkSettings):
    """Where the lines go."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_JSONL_")
    about: ClassVar[str] = (
        "One JSON object a line on standard output, or at the end of a file. Nothing tells a line that a worker wrote "
        "before it died from a new one: a reader that counts takes each `evaluation_id` once."
    )

    path: Path | None = Field(
        None, description="File to append to; it may be rotated by renaming it. Unset: standard output."
    )


def build(settings: Settings) -> JsonLines:
    """The sink of these settings."""
    return JsonLines(settings.path)


class JsonLines:
    """Writes a batch in one piece, so that lines of several threads and processes do not mix."""

    name = "jsonl"
    max_batch = 500
    takes_failures = True

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink`."""
        lines = b"".join(json_bytes(document(annotation)) + b"\n" for annotation in annotations)
        try:
            with self._lock:
                self._write(lines)
        except OSError as error:
            raise SinkError(f"jsonl: {self._path or 'standard output'}: {error.strerror or error}") from None
        return [Delivered()] * len(annotations)

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, lines: bytes) -> None:
        if self._path is None:
            sys.stdout.flush()
            _write_all(1, lines)
            return
        # Opened anew for each batch: after a rotation it is another file. Explanations quote records: the owner's only.
        # Not blocking: a pipe without a reader is an error, and would else hold this thread for good.
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        try:
            os.set_blocking(handle, True)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                # Whether it ends within a line shows only while nobody writes. Closing it lets go.
                fcntl.flock(handle, fcntl.LOCK_EX)
            _write_all(handle, b"\n" + lines if _is_torn(handle, self._path) else lines)
        finally:
            os.close(handle)


def _is_torn(handle: int, path: Path) -> bool:
    """Whether the file ends within a line, as a full disk leaves it: the next line would be lost in it."""
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_size == 0:
        return False
    try:
        with path.open("rb") as file:
            file.seek(about.st_size - 1)
            return file.read(1) not in (b"\n", b"")
    except OSError:  # it may be written but not read, or was renamed just now
        return False


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
