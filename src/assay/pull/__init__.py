"""Scores what a trace store has already: by time range and filter, resumable, nothing twice.

A source gives traces page by page, oldest first. Each page becomes records by `assay.spans`, is enqueued, and then the
place is noted in a file of the data directory. The record id is derived from the ids of the span, so a page that comes
again (after a crash, or where ranges overlap) is known by the workers, and scored once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from assay.enqueue import enqueue
from assay.errors import RecordError, SettingsError, SourceError
from assay.interactions import as_record, trace_id_text
from assay.redaction import hash_user_id
from assay.spans import app_of, interactions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from assay.queue import Queue
    from assay.records import Record
    from assay.sampling import Sampler
    from assay.spans import Span

SOURCES: Final = ("langfuse", "mlflow", "phoenix")
#: What is younger may still be under way.
SETTLE: Final = timedelta(minutes=1)
#: How far back the next pull looks again, for spans that arrived late.
OVERLAP: Final = timedelta(minutes=10)
#: How far back the first one looks.
FIRST: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some traces, each with the span ids that this page is about; the others are there for what they tell of them.

    `cursor` is where the next page begins, None after the last.
    """

    traces: Sequence[tuple[Sequence[Span], frozenset[str]]]
    cursor: str | None


class Source(Protocol):
    """A trace store."""

    @property
    def name(self) -> str:
        """Such as `phoenix`."""

    @property
    def identity(self) -> str:
        """What tells this place and filter from others: URL, project, filter; no secrets."""

    def page(self, since: datetime, until: datetime, cursor: str | None) -> Page:
        """The traces that began in [since, until), from `cursor` on, oldest first.

        Raises:
            SourceError: it is away, refuses us, or answers with what cannot be read.
        """

    def close(self) -> None:
        """Close its connections."""


@dataclass(slots=True)
class Pulled:
    """What came of a pull. `skipped` spans tell of no interaction, by reason; `invalid` are no records."""

    since: datetime
    until: datetime
    traces: int = 0
    enqueued: int = 0
    sampled_out: int = 0
    invalid: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """How interactions become records: as `assay.Client` has it."""

    sampler: Sampler
    redact: Callable[[Record], Record] | None
    user_id_salt: str | None
    app: str | None = None


@dataclass(slots=True)
class Place:
    """How far the pulls of one source and filter have come: a range under way, with its cursor, or one that is done."""

    path: Path
    since: datetime | None = None
    until: datetime | None = None
    cursor: str | None = None
    #: records of the page at the cursor that are enqueued already
    skip: int = 0
    unfinished: bool = False
    #: how the range was asked for, such as `7d`: asked for so again, an unfinished one goes on
    asked: str = ""

    @classmethod
    def read(cls, directory: Path, source: Source) -> Place:
        """The place that was noted last; a file that cannot be read counts as none."""
        digest = hashlib.sha256(source.identity.encode()).hexdigest()[:16]
        place = cls(directory / "pull" / f"{source.name}-{digest}.json")
        try:
            noted = json.loads(place.path.read_text())
            place.since = _time(noted["since"])
            place.until = _time(noted["until"])
            place.cursor = noted["cursor"]
            place.skip, place.unfinished = int(noted["skip"]), noted["unfinished"] is True
            place.asked = str(noted["asked"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls(place.path)
        return place

    def note(
        self, since: datetime, until: datetime, cursor: str | None, *, skip: int = 0, unfinished: bool, asked: str = ""
    ) -> None:
        """Note the place, all or nothing.

        Raises:
            SettingsError: the data directory cannot be written.
        """
        self.since, self.until, self.cursor, self.skip, self.unfinished = since, until, cursor, skip, unfinished
        self.asked = asked
        text = json.dumps(
            {
                "since": since.isoformat(),
                "until": until.isoformat(),
                "cursor": cursor,
                "skip": skip,
                "unfinished": unfinished,
                "asked": asked,
            }
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = self.path.with_suffix(f".{os.getpid()}.new")
            new.write_text(text)
            new.replace(self.path)
        except OSError as error:
            raise SettingsError(f"{self.path} cannot be written: {error.strerror}: set ASSAY_DATA_DIR") from None


def next_range(
    place: Place, since: datetime | None, until: datetime | None, now: datetime, asked: str = ""
) -> tuple[datetime, datetime, bool]:
    """The range to pull: what was asked for, the rest of an unfinished one (True), or what came since.

    An unfinished one goes on when nothing else is asked for, or the same by the same words.

    Raises:
        SettingsError: the range is empty.
    """
    known = place.since is not None and place.until is not None
    if known and place.unfinished and ((since is None and until is None) or asked == place.asked):
        return place.since, place.until, True  # type: ignore[return-value]  # both are known
    end = until or now - SETTLE
    begin = since or (place.until - OVERLAP if place.until is not None and not place.unfinished else end - FIRST)
    if begin >= end:
        raise SettingsError(f"--since {begin.isoformat()} is not before --until {end.isoformat()}")
    return begin, end, False


def pull(
    source: Source,
    *,
    taking: Taking,
    place: Place,
    since: datetime | None = None,
    until: datetime | None = None,
    asked: str = "",
    now: datetime,
    queue: Queue | None,
    limit: int | None = None,
    on_page: Callable[[Pulled], None] = lambda _: None,
) -> Pulled:
    """Enqueue the interactions of a range. Without a queue nothing is enqueued and nothing noted: a dry run.

    `asked` are the words that the range was asked for by: the same again go on with an unfinished one.
    A `limit` ends it after the page in which so many were enqueued; the next pull goes on behind it.

    Raises:
        SettingsError: the range is empty, or the place cannot be noted.
        SourceError: the store is away. QueueError: Redis is away. Pages before stay enqueued and noted.
    """
    begin, end, resumed = next_range(place, since, until, now, asked)
    asked = place.asked if resumed else asked
    cursor, skip = (place.cursor, place.skip) if resumed else (None, 0)
    done = Pulled(begin, end)
    while True:
        page = source.page(begin, end, cursor)
        if page.cursor is not None and page.cursor == cursor:
            raise SourceError(f"{source.name}: its page leads to itself: the pull would never end")
        records = list(_records(page, taking, done))[skip:]
        left = len(records) if limit is None else limit - done.enqueued
        done.enqueued += enqueue(records[:left], queue) if queue is not None else len(records[:left])
        cut = left < len(records)
        if not cut:
            cursor, skip = page.cursor, 0
        done.finished = not cut and cursor is None
        if queue is not None:
            place.note(begin, end, cursor, skip=skip + left if cut else 0, unfinished=not done.finished, asked=asked)
        on_page(done)
        if done.finished or done.enqueued == limit:
            return done


def _records(page: Page, taking: Taking, done: Pulled) -> Iterator[Record]:
    for spans, wanted in page.traces:
        done.traces += 1
        found = interactions(spans)
        done.skipped.update({str(reason): count for reason, count in found.skipped.items()})
        for span, fields in found.interactions:
            if span.span_id not in wanted:
                continue
            try:
                record = _record(span, fields, taking)
            except (RecordError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
                done.invalid += 1
                continue
            if record is None:
                done.sampled_out += 1
            else:
                yield record


def _record(span: Span, fields: dict[str, Any], taking: Taking) -> Record | None:
    fields["trace_id"] = trace_id_text(fields["trace_id"])
    sampling = taking.sampler.decide(fields["trace_id"] or fields["record_id"], fields)
    if sampling is None:
        return None
    user = fields.get("user_id")
    salt = taking.user_id_salt
    hashed = hash_user_id(user, salt) if user is not None and salt else None
    fields.setdefault("timestamp", datetime.now(UTC))
    record = as_record(taking.app or app_of(span), {**fields, "sampling": sampling}, hashed)
    return taking.redact(record) if taking.redact is not None else record


def _time(text: object) -> datetime | None:
    return None if text is None else datetime.fromisoformat(str(text))
