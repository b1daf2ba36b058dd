"""Files that people name: read so that no pipe, device or giant among them hangs or fills the process; kept private."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: The most bytes of one line, and how many are passed over in search of its end.
MOST_LINE_BYTES: Final = 10_000_000
_MOST_PASSED_BYTES: Final = 1_000_000_000


def open_file(path: Path, *, pipes: bool = False) -> BinaryIO:
    """Open a regular file for reading; symbolic links are followed.

    Args:
        pipes: take a pipe too, such as a shell's `<(...)`. One that nobody has opened for writing is empty.

    Raises:
        OSError: it cannot be opened, or is a directory, pipe, socket or device; `strerror` says what.
    """
    # A pipe that nobody writes to would be waited for.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if pipes and stat.S_ISFIFO(mode):
            os.set_blocking(handle, True)
        elif not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: Path, most: int, *, pipes: bool = False) -> bytes:
    """The whole of a regular file, or with `pipes` of a pipe.

    Raises:
        OSError: see `open_file`; or it is larger than `most` bytes.
    """
    with open_file(path, pipes=pipes) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"is larger than {most:,} bytes", str(path))
    return raw


def create_private(path: Path) -> TextIO:
    """Open a text file for writing, empty; one that is new can be read by its owner alone, as it quotes records.

    Raises:
        OSError: it cannot be made.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "w", encoding="utf-8", newline="")


def bounded_lines(source: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file, and of each whether it is whole.

    Of a line longer than `MOST_LINE_BYTES` comes only the first thousandth; the rest is passed over. A source in
    which no line ends for a gigabyte, such as /dev/zero, ends there.
    """
    readline = getattr(source, "readline", None)
    if readline is None:
        for line in source:
            is_whole = len(line) <= MOST_LINE_BYTES
            yield (line if is_whole else line[: MOST_LINE_BYTES // 1000]), is_whole
        return
    while line := readline(MOST_LINE_BYTES + 1):
        if len(line) <= MOST_LINE_BYTES:
            yield line, True
            continue
        passed, last = len(line), line[-1:]
        line = line[: MOST_LINE_BYTES // 1000]
        while last not in (b"\n", b"") and passed < _MOST_PASSED_BYTES:
            rest = readline(MOST_LINE_BYTES)
            passed, last = passed + len(rest), rest[-1:]
        yield line, False
        if last != b"\n":
            return
