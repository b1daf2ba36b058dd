"""What a judge's tokens and dollars are, mode by mode: the table of docs/explanation/cost.md.

python benchmarks/cost.py [--records 300] [--write]

Synthetic records of a question, four passages and an answer of about 120 words each, under the four shipped rubrics,
are judged by a local server that counts tokens (characters / 4) and whose replies are of the length that judges write.
Dollars are those of gpt-4o-mini in the shipped price table. What a provider's prompt cache would take is computed from
the prompts that were made, by the rule that OpenAI publishes; no provider is asked. Agreement with people is not
measured: that takes a real model and labels (`assay calibrate`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os.path
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from throughput import judge_server, rag_record, traffic

from assay.embedded import RedisServer
from assay.judges import JudgeSettings
from assay.judges._prices import load_prices
from assay.judges._prompt import render, schema
from assay.pipeline import Judges, balanced_orders, evaluate
from assay.records import Record, Score
from assay.reuse import Reuse
from assay.rubrics import Rubric, load_rubrics

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "cost.md"
MODEL = "gpt-4o-mini"
#: OpenAI caches prompts from so many tokens on, in such steps.
LEAST_CACHED, CACHED_STEP = 1024, 128
#: Calls at once.
IN_FLIGHT = 16
#: How many earlier calls a call's beginning is looked for in.
REMEMBERED = 32

Order = Callable[[Record, Sequence[Rubric]], list[Rubric]]


@dataclass(frozen=True, slots=True)
class Mode:
    """What was counted for so many records."""

    name: str
    records: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float

    def row(self, base: float) -> str:
        """A line of the table."""
        thousand = self.cost_usd / self.records * 1000
        return (
            f"| {self.name} | {self.calls / self.records:.2f} | {self.prompt_tokens / self.records:,.0f} "
            f"| {self.completion_tokens / self.records:,.0f} | {thousand:.3f} | {thousand / base:.2f} |"
        )


async def judged(records: Sequence[Record], rubrics: Sequence[Rubric], url: str, reuse: Reuse | None) -> float:
    """What the evaluations of these say that they cost, in USD."""
    settings = JudgeSettings(engine="openai", model=MODEL, base_url=url, api_key="synthetic", logprobs=False)
    judges = Judges.build(rubrics, settings, reuse=reuse)
    turns = asyncio.Semaphore(IN_FLIGHT)

    async def one(record: Record) -> float:
        async with turns:
            outcomes = [evaluation.outcome for evaluation in await evaluate(record, rubrics, judges)]
        if not all(isinstance(outcome, Score) for outcome in outcomes):
            raise RuntimeError(f"not all were scored: {outcomes}")
        return sum(outcome.usage.cost_usd or 0.0 for outcome in outcomes)

    try:
        return sum(await asyncio.gather(*map(one, records)))
    finally:
        await judges.aclose()


def measured(name: str, records: Sequence[Record], rubrics: Sequence[Rubric], reuse: Reuse | None = None) -> Mode:
    """One mode through a server of its own."""
    with judge_server("--latency", "0.01") as url:
        cost = asyncio.run(judged(records, rubrics, url, reuse))
        seen = traffic(url)
    return Mode(name, len(records), seen["calls"], seen["prompt_tokens"], seen["completion_tokens"], cost)


def modes(count: int) -> list[Mode]:
    """All that are sent."""
    rubrics = load_rubrics()
    alone = [replace(rubric, ask="alone") for rubric in rubrics]
    records = [rag_record(index) for index in range(count)]
    halves = records[: count // 2]
    # Half of the contents, each under two ids.
    twice = [*halves, *(replace(record, record_id=f"{record.record_id}-again") for record in halves)]
    repeating = [replace(record, contexts=(*record.contexts[:3], record.contexts[0])) for record in records]
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory)) as redis:
        return [
            measured("`ask: together` (default)", records, rubrics),
            measured("`ask: alone`", records, alone),
            measured("together, one of four passages came twice", repeating, rubrics),
            measured("together, every text came twice", twice, rubrics),
            measured("the same with `ASSAY_REUSE_SECONDS`", twice, rubrics, Reuse(redis.url, "benchmark", seconds=600)),
        ]


# -- prompt caches


def all_orders(record: Record, rubrics: Sequence[Rubric]) -> list[Rubric]:
    """Any order, by a hash of record and rubric: 24 for four rubrics, as before the balanced ones."""
    return sorted(rubrics, key=lambda rubric: hashlib.sha256(f"{record.record_id}\0{rubric.name}".encode()).digest())


def few_orders(record: Record, rubrics: Sequence[Rubric]) -> list[Rubric]:
    """As assay asks."""
    orders = balanced_orders(len(rubrics))
    drawn = int.from_bytes(hashlib.sha256(record.record_id.encode()).digest()[:8])
    return [sorted(rubrics, key=lambda rubric: rubric.name)[place] for place in orders[drawn % len(orders)]]


def one_order(_: Record, rubrics: Sequence[Rubric]) -> list[Rubric]:
    """Always the same: for comparison."""
    return list(rubrics)


def prefixes(name: str, records: Sequence[Record], order: Order) -> str:
    """A line of the table: what a call's beginning shares with the call before, and with the best of the latest."""
    sent: list[str] = []
    last, best, cached = 0, 0, 0
    asked, used = load_rubrics(), set()
    for record in records:
        rubrics = order(record, asked)
        used.add(tuple(rubric.name for rubric in rubrics))
        # OpenAI puts the schema before the system message.
        text = json.dumps(schema(rubrics)) + "".join(message["content"] for message in render(record, rubrics))
        shared = [len(os.path.commonprefix([text, other])) for other in sent[-REMEMBERED:]]  # noqa: RUF071 - no paths
        if shared:
            last += shared[-1]
            best += max(shared)
            tokens = max(shared) // 4
            cached += tokens // CACHED_STEP * CACHED_STEP if tokens >= LEAST_CACHED else 0
        sent.append(text)
    calls = len(records) - 1
    price = load_prices(None).of(MODEL)
    saved = 0.0
    if price is not None and price.cached_prompt is not None:
        saved = cached / calls * (price.prompt - price.cached_prompt) / 1e6 * 1000
    return (
        f"| {name} | {len(used)} | {last / calls:,.0f} | {best / calls:,.0f} | {best / calls / 4:,.0f} "
        f"| {cached / calls:,.0f} | {saved:.3f} |"
    )


def page(count: int) -> dict[str, str]:
    """The tables by the name of their marker."""
    found = modes(count)
    base = found[0].cost_usd / found[0].records * 1000
    records = [rag_record(index) for index in range(count)]
    return {
        "modes": "\n".join(
            [
                "| mode | calls/record | prompt tokens | completion tokens | USD per 1,000 records | of the default |",
                "|---|--:|--:|--:|--:|--:|",
                *(mode.row(base) for mode in found),
            ]
        ),
        "prefixes": "\n".join(
            [
                "| orders of four criteria | used | shared with the call before, bytes | with the best of the latest "
                f"{REMEMBERED}, bytes | tokens | of them cached | saved, USD per 1,000 records |",
                "|---|--:|--:|--:|--:|--:|--:|",
                prefixes("all", records, all_orders),
                prefixes("balanced (assay's)", records, few_orders),
                prefixes("one, for comparison", records, one_order),
            ]
        ),
    }


def main() -> None:
    """Measure, print, and with `--write` put the tables into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=300, help="for each mode; even")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    given = parser.parse_args()
    if given.records < 4 or given.records % 2:
        parser.error("--records: an even number from 4 on")
    tables = page(given.records)
    text = PAGE.read_text()
    for name, table in tables.items():
        sys.stdout.write(table + "\n\n")
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = marked.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
    if given.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
