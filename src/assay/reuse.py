"""What was asked already is not paid for again: verdicts kept for a while, by what a judge is shown.

Two records of one app with the same texts (a canned answer, an app's retry) put the same question to the same judge
under the same rubric. The first one's verdict is kept in Redis, and what comes while it is still being judged waits for
it. docs/decisions/0018-prompts.md has the reasons.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from assay.connections import connect, connect_async
from assay.errors import QueueError
from assay.records import NotApplicable, Score, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from assay.records import Outcome, Record
    from assay.rubrics import Rubric

_log = logging.getLogger(__name__)

#: Part of every key: change it with the form of what is kept.
_FORM = 1
_MOST_BYTES = 100_000
_NOTHING = Usage(prompt_tokens=0, completion_tokens=0, cost_usd=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was kept: the outcome as its judge gave it, and the record that paid for it."""

    record_id: str
    outcome: Score | NotApplicable


class Reuse:
    """Verdicts of a queue's workers, for each other. It belongs to the event loop of its first call.

    Args:
        url: of Redis.
        queue: name of the queue.
        seconds: how long a verdict is kept; above 0.
        on_reused: is told the judge's name for each verdict that was not asked for.
        timeout_seconds: of each connect to Redis, and each reply.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        *,
        seconds: float,
        on_reused: Callable[[str], None] = lambda _: None,
        timeout_seconds: float = 2.0,
    ) -> None:
        self._url = url
        self._prefix = _prefix(queue)
        self._seconds = seconds
        self._on_reused = on_reused
        self._timeout_seconds = timeout_seconds
        self._redis: Any = None
        #: what is being judged now, by key; None: it came to no verdict
        self._pending: dict[str, asyncio.Future[Verdict | None]] = {}
        self._told = 0.0

    async def outcomes(
        self,
        record: Record,
        rubrics: Sequence[Rubric],
        *,
        judge: str,
        fingerprint: str,
        ask: Callable[[Sequence[Rubric]], Awaitable[Sequence[Outcome]]],
    ) -> list[Outcome]:
        """One outcome for each rubric, in their order: those that are known, and for the others what `ask` gives.

        A verdict of another record costs nothing and is marked `reused` in its details; the record that paid for one
        gets it back as it was. Failures are never kept. Where Redis is away, all are asked.

        Args:
            record: what is judged.
            rubrics: with names that differ.
            judge: its name.
            fingerprint: of the judge.
            ask: judges the record under some of the rubrics, in their order.
        """
        keys = keys_of(record, rubrics, fingerprint)
        # No await until all that is ours is taken: two records can never wait for each other.
        others = {key: self._pending[key] for key in keys if key in self._pending}
        ours = {key: rubric for key, rubric in keys.items() if key not in others}
        loop = asyncio.get_running_loop()
        self._pending.update((key, loop.create_future()) for key in ours)
        found: dict[str, Outcome] = {}
        verdicts: dict[str, Verdict] = {}
        try:
            verdicts |= await self._read(list(ours))
            left = {key: rubric for key, rubric in ours.items() if key not in verdicts}
            found |= await self._asked(record, left, ask, verdicts)
        finally:
            for key in ours:
                self._pending.pop(key).set_result(verdicts.get(key))
        if others:
            await asyncio.wait(others.values())
            known = {key: future.result() for key, future in others.items()}
            verdicts |= {key: verdict for key, verdict in known.items() if verdict is not None}
            # Each for itself, as without us: one after the other would make the last one wait for all.
            failed = {key: keys[key] for key, verdict in known.items() if verdict is None}
            found |= await self._asked(record, failed, ask, verdicts)
        return [found[key] if key in found else self._again(verdicts[key], record, judge) for key in keys]

    async def aclose(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    async def _asked(
        self,
        record: Record,
        wanted: Mapping[str, Rubric],
        ask: Callable[[Sequence[Rubric]], Awaitable[Sequence[Outcome]]],
        verdicts: dict[str, Verdict],
    ) -> dict[str, Outcome]:
        """What is asked now, by key; what is a verdict is kept, and put into `verdicts`."""
        if not wanted:
            return {}
        outcomes = dict(zip(wanted, await ask(list(wanted.values())), strict=True))
        new = {
            key: Verdict(record_id=record.record_id, outcome=outcome)
            for key, outcome in outcomes.items()
            if isinstance(outcome, Score | NotApplicable)
        }
        verdicts |= new
        await self._write(record, new)
        return outcomes

    def _again(self, verdict: Verdict, record: Record, judge: str) -> Outcome:
        outcome = verdict.outcome
        if verdict.record_id == record.record_id:
            # It was judged, and its worker died before it was stored: what it cost is still to be counted.
            return outcome
        self._on_reused(judge)
        if isinstance(outcome, Score):
            outcome = replace(outcome, details={**outcome.details, "reused": True})
        return replace(outcome, usage=_NOTHING, latency_seconds=0.0)

    async def _read(self, keys: Sequence[str]) -> dict[str, Verdict]:
        texts = await self._try("mget", [self._prefix + key for key in keys]) if keys else None
        verdicts = {}
        for key, text in zip(keys, texts or (), strict=False):
            if text is None:
                continue
            try:
                verdicts[key] = _read_back(text)
            except (ValueError, TypeError, KeyError) as error:
                self._tell(error)
        return verdicts

    async def _write(self, record: Record, verdicts: Mapping[str, Verdict]) -> None:
        for key, verdict in verdicts.items():
            try:
                text = _written(record, verdict)
            except (ValueError, TypeError) as error:
                self._tell(error)
                continue
            if len(text) <= _MOST_BYTES:
                await self._try("set", self._prefix + key, text, px=max(1, round(self._seconds * 1000)))

    async def _try(self, command: str, *args: Any, **options: Any) -> Any:
        """The reply, or None where Redis has none to give: then it is asked, which costs no more than without us."""
        from redis.exceptions import RedisError

        try:
            if self._redis is None:
                self._redis = connect_async(self._url, timeout_seconds=self._timeout_seconds)
            return await getattr(self._redis, command)(*args, **options)
        except (RedisError, OSError) as error:
            self._tell(error)
            return None

    def _tell(self, error: Exception) -> None:
        moment = time.monotonic()
        if moment - self._told >= 60:
            self._told = moment
            _log.warning("verdicts are not reused", extra={"error": str(error) or type(error).__name__})


def forget(
    url: str, queue: str, is_wanted: Callable[[bytes], bool], *, dry_run: bool = False, timeout_seconds: float = 2.0
) -> int:
    """Delete kept verdicts, which quote the texts of the record that paid for them; returns how many.

    Args:
        url: of Redis.
        queue: name of the queue.
        is_wanted: says so of one by its JSON, which has the ids of that record and its app under the names of the
            record's fields.
        dry_run: only count.
        timeout_seconds: of each connect to Redis, and each reply.

    Raises:
        QueueError: Redis is away.
    """
    from redis.exceptions import RedisError

    client = connect(url, timeout_seconds=timeout_seconds)
    found = 0
    try:
        for name in client.scan_iter(_prefix(queue) + "*", count=500):
            kept: Any = client.get(name)
            if kept is not None and is_wanted(kept):
                found += 1
                if not dry_run:
                    client.unlink(name)
    except (RedisError, OSError) as error:
        raise QueueError(f"Redis: {error}") from error
    finally:
        client.close()
    return found


def _prefix(queue: str) -> str:
    return f"assay:{queue}:verdict:"


def keys_of(record: Record, rubrics: Sequence[Rubric], fingerprint: str) -> dict[str, Rubric]:
    """The rubrics by what is asked: equal for all records of one app whose texts are the same to a judge."""
    texts = [
        record.app,
        record.input if isinstance(record.input, str) else [[turn.role, turn.content] for turn in record.input],
        record.output,
        [context.text for context in record.contexts],
        record.reference,
        [[event.name, event.arguments, event.result, event.error] for event in record.tool_events],
    ]
    content = hashlib.sha256(json.dumps([_FORM, fingerprint, texts]).encode()).hexdigest()
    return {hashlib.sha256(f"{content}\0{rubric.hash}".encode()).hexdigest(): rubric for rubric in rubrics}


def _written(record: Record, verdict: Verdict) -> bytes:
    # By these it is found when the texts of the record are to be deleted.
    whose = {name: getattr(record, name) for name in ("record_id", "app", "trace_id", "user_id")}
    kept = whose | {"outcome": asdict(verdict.outcome)}
    return json.dumps(kept, separators=(",", ":"), allow_nan=False).encode()


def _read_back(text: bytes) -> Verdict:
    """The verdict; raises ValueError, TypeError or KeyError where it is none of ours."""
    kept = json.loads(text)
    outcome = kept["outcome"] | {"usage": Usage(**kept["outcome"]["usage"])}
    kind = NotApplicable if "reason" in outcome else Score
    return Verdict(record_id=kept["record_id"], outcome=kind(**outcome))
