"""Records and judges for tests. All texts are synthetic."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from assay.judges import JudgeSettings, build_judge
from assay.records import Context, Outcome, Record
from assay.rubrics import Rubric
from assay.scales import Binary, Checklist, Claims, Item, Level, Ordinal

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def a_record(**fields: Any) -> Record:
    contexts = fields.pop(
        "contexts", ("Returns are accepted within 30 days of delivery. Refunds take 5 business days.",)
    )
    texts = {
        "record_id": "r-1",
        "input": "How long do I have to return an order?",
        "output": "You can return an order within 30 days of delivery.",
    }
    return Record(timestamp=NOON, contexts=tuple(Context(text=text) for text in contexts), **(texts | fields))


def ordinal(name: str = "relevance", **fields: Any) -> Rubric:
    levels = tuple(Level(level=n, anchor=f"anchor {n}") for n in range(1, 6))
    return a_rubric(name, Ordinal(levels=levels), **fields)


def binary(name: str = "verdicts", **fields: Any) -> Rubric:
    return a_rubric(name, Binary(pass_when="it does", fail_when="it does not"), **fields)


def checklist(name: str = "safety", **fields: Any) -> Rubric:
    items = (Item(id="polite", question="Is it polite?"), Item(id="short", question="Is it short?"))
    return a_rubric(name, Checklist(items=items), **fields)


def claims(name: str = "faithfulness", **fields: Any) -> Rubric:
    return a_rubric(name, Claims(), requires=("contexts",), **fields)


def a_rubric(name: str, scale: Any, **fields: Any) -> Rubric:
    known = name if name in ("faithfulness", "relevance", "safety", "completeness") else "other"
    return Rubric(
        **(
            {
                "name": name,
                "version": "1",
                "instructions": f"Judge {name}.",
                "scale": scale,
                "pass_threshold": 0.7,
                "dimension": known,
            }
            | fields
        )
    )


@asynccontextmanager
async def openai_judge(base_url: str, observer: Any = None, **fields: Any):
    settings = {"engine": "openai", "model": "gpt-5-mini", "base_url": base_url, "timeout_seconds": 30.0}
    judge = build_judge(None, JudgeSettings(**(settings | fields)), observer)
    try:
        yield judge
    finally:
        await judge.aclose()


def ask(
    base_url: str, rubrics: Sequence[Rubric], record: Record | None = None, observer: Any = None, **fields: Any
) -> list[Outcome]:
    """One record's outcomes from the openai judge at this endpoint."""

    async def run() -> list[Outcome]:
        async with openai_judge(base_url, observer, **fields) as judge:
            return list(await judge.judge(record or a_record(), rubrics))

    return asyncio.run(run())


def with_judge(base_url: str, use: Callable[[Any], Awaitable[Any]], observer: Any = None, **fields: Any) -> Any:
    """What `use` returns, given one openai judge at this endpoint."""

    async def run() -> Any:
        async with openai_judge(base_url, observer, **fields) as judge:
            return await use(judge)

    return asyncio.run(run())
