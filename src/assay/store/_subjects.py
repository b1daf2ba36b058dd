"""Deletion of one subject: the texts of the records of a person, a trace or an id, wherever they are stored."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from assay.codec import app_named
from assay.errors import RecordError
from assay.queue import decode_batch, encode_batch, is_batch
from assay.records import now
from assay.store._outbox import forget_records
from assay.store._purge import LOOKUP_CHUNK, chunks, forget_verdict_texts
from assay.store._rollups import Additions
from assay.store._tables import dead_letters, exemplars, payloads, records, text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from assay.store._database import Database

#: Records in one transaction: some milliseconds.
_CHUNK = 200
#: Texts in memory at once while those of a user are looked for; dead letters may be as large as a batch.
_PAGE, _LETTER_PAGE = 500, 20
_PAUSE_SECONDS = 0.005

#: Ids under which other systems, and people, know the interaction.
_LINKS = ("trace_id", "span_id", "session_id", "sink_refs")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose records: those that have one of these ids."""

    record_ids: frozenset[str] = field(default=frozenset())
    trace_ids: frozenset[str] = field(default=frozenset())
    #: as they are in records: hashed, see `assay.redaction.hash_user_id`
    user_ids: frozenset[str] = field(default=frozenset())

    def owns(self, record: str | bytes) -> bool:
        """Whether a record's JSON has one of the ids; of what is no JSON, whether one of them stands in it, quoted."""
        try:
            fields = json.loads(record)
        except (ValueError, RecursionError):
            return self._is_in(record)
        if not isinstance(fields, dict):
            return self._is_in(record)
        named = (fields.get("record_id"), fields.get("trace_id"), fields.get("user_id"))
        wanted = (self.record_ids, self.trace_ids, self.user_ids)
        return any(isinstance(name, str) and text(name) in ids for name, ids in zip(named, wanted, strict=True))

    def _is_in(self, raw: str | bytes) -> bool:
        raw = raw.encode(errors="replace") if isinstance(raw, str) else raw
        return any(
            json.dumps(name, ensure_ascii=ascii_only).encode(errors="replace") in raw
            for name in self.record_ids | self.trace_ids | self.user_ids
            for ascii_only in (False, True)
        )

    def records_in(self, payload: bytes, apps: Collection[str] = ()) -> int:
        """How many of the records in a payload of the queue, a batch or one record, are the subject's.

        `apps`: only records of these; of none: of all.
        """
        mine = (part for part in _parts(payload) if self.owns(part))
        return sum(not apps or app_named(part) in apps for part in mine)

    def others_in(self, payload: bytes) -> list[bytes]:
        """The records in it that are not the subject's, as they came."""
        return [part for part in _parts(payload) if not self.owns(part)]


def _parts(payload: bytes) -> tuple[bytes, ...]:
    if not is_batch(payload):
        return (payload,)
    try:
        return decode_batch(payload).records
    except RecordError:
        return (payload,)


class _DryRunError(Exception):
    """Takes back what a transaction did, once it is counted."""


class _Erasure:
    """One deletion under way."""

    def __init__(self, database: Database, subject: Subject, *, dry_run: bool) -> None:
        self._database = database
        self._dry_run = dry_run
        self.subject = Subject(
            frozenset(map(text, subject.record_ids)),
            frozenset(map(text, subject.trace_ids)),
            frozenset(map(text, subject.user_ids)),
        )
        self.deleted = dict.fromkeys(
            (
                *("records", "payloads", "explanations", "dead_letters", "dead_letters_rewritten"),
                *("outbox", "links", "exemplars"),
            ),
            0,
        )

    def write(self, work: Callable[[sa.Connection], dict[str, int]]) -> None:
        """Count what `work` did in a transaction, and keep it unless this is a dry run."""
        done: dict[str, int] = {}

        def tried(connection: sa.Connection) -> None:
            done.clear()
            done.update(work(connection))
            if self._dry_run:
                raise _DryRunError

        with suppress(_DryRunError):
            self._database.write(tried)
        for name, n in done.items():
            self.deleted[name] += n
        time.sleep(_PAUSE_SECONDS)

    def rows(self, table: sa.Table, *columns: sa.Column[Any], size: int) -> Iterator[list[sa.Row[Any]]]:
        """All rows in pages, each read in a transaction of its own: what is long takes no part in any."""
        (key,) = table.primary_key
        after: str | None = None
        while True:
            page = sa.select(key, *columns).order_by(key).limit(size)
            with self._database.read() as connection:
                found = list(connection.execute(page if after is None else page.where(key > after)).all())
            if not found:
                return
            yield found
            after = found[-1][0]

    def find(self) -> list[str]:
        """Ids of the stored records of the subject."""
        found: set[str] = set()
        for table_column, wanted in (
            (records.c.record_id, self.subject.record_ids),
            (records.c.trace_id, self.subject.trace_ids),
        ):
            for chunk in chunks(sorted(wanted), LOOKUP_CHUNK):
                with self._database.read() as connection:
                    found.update(
                        connection.execute(sa.select(records.c.record_id).where(table_column.in_(chunk))).scalars()
                    )
        if self.subject.user_ids:
            for page in self.rows(payloads, payloads.c.payload, size=_PAGE):
                found.update(row.record_id for row in page if self.subject.owns(row.payload))
        return sorted(found)

    def letters(self, known: list[str]) -> set[str]:
        """Delete dead letters of the subject, or its part of them; returns the ids of records that they named."""
        mine, named = set(known) | self.subject.record_ids, set[str]()
        for page in self.rows(dead_letters, dead_letters.c.record_id, dead_letters.c.payload, size=_LETTER_PAGE):
            for row in page:
                owned = self.subject.records_in(row.payload)
                if row.record_id not in mine and not owned:
                    continue
                if row.record_id is not None:
                    named.add(row.record_id)
                rest = [] if row.record_id in mine else self.subject.others_in(row.payload)
                self.write(partial(self._letter, row=row, rest=rest))
        return named

    def _letter(self, connection: sa.Connection, row: sa.Row[Any], rest: list[bytes]) -> dict[str, int]:
        unchanged = dead_letters.c.dead_id == row.dead_id
        # Compared here: what is encrypted differs each time, so the database cannot tell.
        locked = sa.select(dead_letters.c.payload).where(unchanged).with_for_update()
        if connection.execute(locked).scalar_one_or_none() != row.payload:
            return {}
        if rest:
            batch = decode_batch(row.payload)
            payload = encode_batch(
                rest,
                batch_id=batch.batch_id,
                enqueued_at=batch.enqueued_at,
                attempt=batch.attempt,
                replay=batch.replay,
                probabilities=batch.probabilities,
                rubrics=batch.rubrics,
            )
            # What went wrong may have been told in the words of any of them.
            changed = sa.update(dead_letters).where(unchanged).values(payload=payload, message="")
            return {"dead_letters_rewritten": connection.execute(changed).rowcount}
        gone = sa.delete(dead_letters).where(unchanged).returning(dead_letters.c.reason, dead_letters.c.replayed_at)
        additions, deleted = Additions(now().timestamp()), connection.execute(gone).all()
        for reason, replayed_at in deleted:
            if replayed_at is None:
                additions.count("dead_kept", reason, -1)
        additions.write(connection)
        return {"dead_letters": len(deleted)}

    def records(self, connection: sa.Connection, record_ids: Sequence[str]) -> dict[str, int]:
        """Delete the texts of some records."""
        mine = records.c.record_id.in_(record_ids)
        # First, as a commit does: what comes meanwhile waits, and then finds them gone.
        locked = sa.select(payloads.c.record_id).where(payloads.c.record_id.in_(record_ids))
        connection.execute(locked.order_by(payloads.c.record_id).with_for_update()).all()
        explanations = forget_verdict_texts(connection, record_ids)
        gone = connection.execute(sa.delete(payloads).where(payloads.c.record_id.in_(record_ids))).rowcount
        additions = Additions(now().timestamp())
        owed = forget_records(connection, additions, record_ids)
        additions.write(connection)
        traces = list(connection.execute(sa.select(records.c.trace_id).where(mine)).scalars())
        traced = exemplars.c.trace_id.in_({trace for trace in traces if trace is not None})
        shown = connection.execute(sa.delete(exemplars).where(traced)).rowcount
        linked = sa.or_(*(records.c[name].is_not(sa.null()) for name in _LINKS))
        cut = sa.update(records).where(mine, linked).values(dict.fromkeys(_LINKS, sa.null()))
        links = connection.execute(cut).rowcount
        return {
            "records": len(traces),
            "payloads": gone,
            "explanations": explanations,
            "outbox": owed,
            "links": links,
            "exemplars": shown,
        }


def erase(database: Database, subject: Subject, *, dry_run: bool) -> dict[str, int]:
    """See `Store.erase`."""
    erasure = _Erasure(database, subject, dry_run=dry_run)
    known = erasure.find()
    # The texts of a record may be gone before its dead letter: then that alone says whose it was.
    wanted = sorted(set(known) | erasure.letters(known))
    for chunk in chunks(wanted, _CHUNK):
        erasure.write(partial(erasure.records, record_ids=chunk))
    if not dry_run:
        database.empty_log()
    return erasure.deleted
