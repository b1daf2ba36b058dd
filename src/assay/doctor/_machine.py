"""Checks of this machine and of what was set on it: variables, secrets, addresses, files, disks."""

from __future__ import annotations

import resource
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from assay import wiring
from assay.doctor._finding import Finding
from assay.errors import ConfigError
from assay.settings import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assay.settings import Settings

_DISK_TOLERANCE_BYTES = 500_000_000
#: Connections of a worker to the database, to Redis and to sinks, and what Python has open.
_OTHER_FILES = 120
#: Kinds of file systems on which SQLite's locks do not hold.
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs")
_MOUNTS = Path("/proc/self/mounts")


def machine(settings: Settings) -> Iterator[Finding]:
    """Everything that can be seen without a server."""
    for line in unknown_variables():
        yield Finding(
            "settings", "warning", line, "mend its name, or unset it: docs/reference/settings.md has them all"
        )
    yield from _secrets(settings)
    try:
        for line in wiring.exposures(settings):
            message, _, mend = line.partition(": ")
            yield Finding("addresses", "warning", message, mend)
    except ConfigError as error:
        yield Finding("addresses", "wrong", str(error), "mend the files, or unset both settings")
    yield from _files(settings)
    if settings.database_url is None or settings.store_url.startswith("sqlite"):
        yield from _disk(settings)


def _secrets(settings: Settings) -> Iterator[Finding]:
    for path in (Path(".env"), settings.tls_key):
        if path is not None and _is_open(path):
            yield Finding("secrets", "warning", f"{path}: others on this machine can read it", f"run: chmod 600 {path}")


def _is_open(path: Path) -> bool:
    return path.is_file() and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _files(settings: Settings) -> Iterator[Finding]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.judge_max_in_flight + settings.concurrency + settings.peer_connections + _OTHER_FILES
    if limit != resource.RLIM_INFINITY and limit < needed:
        message = f"{limit} file descriptors, and a worker may need {needed}"
        mend = f"run: ulimit -n {2 * needed}, or lower ASSAY_JUDGE_MAX_IN_FLIGHT"
        yield Finding("files", "warning", message, mend)


def _disk(settings: Settings) -> Iterator[Finding]:
    path = settings.store_url.partition("///")[2] if settings.database_url is not None else settings.data_dir
    database = Path(settings.store_url.partition("///")[2])
    if _is_open(database):
        message = f"{database}: others on this machine can read it"
        yield Finding("database", "warning", message, f"run: chmod 600 {database}*")
    directory = _existing(Path(path))
    free = shutil.disk_usage(directory).free
    if free < _DISK_TOLERANCE_BYTES:
        yield Finding("disk", "warning", f"{free // 1_000_000} MB free under {path}", "make room, then: assay purge")
    kind = file_system(directory, _MOUNTS.read_text() if _MOUNTS.exists() else "")
    if kind in _NETWORK:
        message = f"SQLite is on {kind}, a network file system, whose locks it cannot rely on"
        yield Finding(
            "disk", "wrong", message, "keep it on a disk of this machine, or set ASSAY_DATABASE_URL to PostgreSQL"
        )


def file_system(directory: Path, mounts: str) -> str:
    """The kind of file system that a directory is on, by a table like /proc/self/mounts; "" if it does not say."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        parts = line.split()
        # Blanks in a name are written as octal.
        where = Path(parts[1].replace("\\040", " ")) if len(parts) > 2 else None
        # Of two at one place the later one counts.
        if where is not None and directory.is_relative_to(where) and len(where.parts) >= best:
            best, kind = len(where.parts), parts[2]
    return kind


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
