"""What a judge's tokens and dollars are, mode by mode: the table of docs/explanation/cost.md.

python benchmarks/cost.py [--records 300] [--write]

Synthetic records of a question, four passages and an answer of about 120 words each, under the four shipped rubrics,
are judged by a local server that counts tokens (characters / 4) and whose replies are of the length that judges write.
Dollars are those of gpt-4o-mini in the shipped price table. What a provider's prompt cache would take is computed from
the prompts that were made, by the rule that OpenAI publishes; no provider is asked. Repeats are measured with a judge
that wavers, as it is told to, on a part of what it is asked. Agreement with people is not
measured: that takes a real model and labels (`assay calibrate`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os.path
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from throughput import judge_server, rag_record, traffic

from assay.cascade import Cascade
from assay.deliveries import DeliveryPolicy
from assay.embedded import RedisServer
from assay.gate import Roster
from assay.judges import JudgeSettings
from assay.judges._prices import load_prices
from assay.judges._prompt import render, schema
from assay.pipeline import Judges, balanced_orders, evaluate
from assay.plans import Planner, Task
from assay.queue import Batch
from assay.records import Record, Score
from assay.repeats import Repeats
from assay.reuse import Reuse
from assay.rubrics import Rubric, load_rubrics
from assay.testing import Ask, FakeJudgeServer

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "cost.md"
MODEL = "gpt-4o-mini"
#: OpenAI caches prompts from so many tokens on, in such steps.
LEAST_CACHED, CACHED_STEP = 1024, 128
#: What is in doubt of the shipped rubrics that are asked again. Safety passes at 1 only: there is no above.
BANDS = {"relevance": (0.5, 0.9), "completeness": (0.6, 0.95), "faithfulness": (0.75, 0.95)}
MOST = 5
#: Share of the yes/no questions on which the wavering judge says either as often; of the rest it is nearly sure.
WAVERING = 0.05
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


async def judged(
    records: Sequence[Record], rubrics: Sequence[Rubric], url: str, reuse: Reuse | None = None, temperature: float = 0.0
) -> list[dict[str, Score]]:
    """The scores of each record that is asked for, by rubric name."""
    settings = JudgeSettings(
        engine="openai", model=MODEL, base_url=url, api_key="synthetic", logprobs=False, temperature=temperature
    )
    judges = Judges.build(rubrics, settings, reuse=reuse)
    turns = asyncio.Semaphore(IN_FLIGHT)

    async def one(task: Task) -> dict[str, Score]:
        async with turns:
            evaluations = await evaluate(task.record, task.rubrics, judges)
        scores = {e.rubric: e.outcome for e in evaluations if isinstance(e.outcome, Score)}
        if len(scores) < len(task.rubrics):
            raise RuntimeError(f"not all were scored: {evaluations}")
        return scores

    try:
        return await asyncio.gather(*map(one, planned(records, rubrics, settings)))
    finally:
        await judges.aclose()


def planned(records: Sequence[Record], rubrics: Sequence[Rubric], settings: JudgeSettings) -> list[Task]:
    """Who is asked for, as a worker plans it."""
    planner = Planner(judges=Judges.build(rubrics, settings), existing=lambda _: {}, policy=DeliveryPolicy())
    batch = Batch("b", 0.0, 0, False, tuple(record.to_json().encode() for record in records))
    return planner.plan(batch, Roster.of(rubrics), 0.0)[1]


def cost_of(scores: Sequence[dict[str, Score]]) -> float:
    """What the scores say that they cost, in USD."""
    return sum(score.usage.cost_usd or 0.0 for record in scores for score in record.values())


def measured(name: str, records: Sequence[Record], rubrics: Sequence[Rubric], reuse: Reuse | None = None) -> Mode:
    """One mode through a server of its own."""
    with judge_server("--latency", "0.01") as url:
        cost = cost_of(asyncio.run(judged(records, rubrics, url, reuse)))
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
    looked_at = [replace(rubric, cascade=Cascade(first="lexical", share=0.3)) for rubric in rubrics]
    # Of a number that no passage has, the words tell.
    doubted = [
        replace(r, output=f"{r.output} It takes 98765 days.") if i % 3 == 0 else r for i, r in enumerate(records)
    ]
    repeating = [replace(record, contexts=(*record.contexts[:3], record.contexts[0])) for record in records]
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory)) as redis:
        return [
            measured("`ask: together` (default)", records, rubrics),
            measured("`ask: alone`", records, alone),
            measured("together, one of four passages came twice", repeating, rubrics),
            measured("together, every text came twice", twice, rubrics),
            measured("the same with `ASSAY_REUSE_SECONDS`", twice, rubrics, Reuse(redis.url, "benchmark", seconds=600)),
            measured("`cascade: {first: lexical, share: 0.3}`, faithfulness of a third in doubt", doubted, looked_at),
        ]


# -- repeats


class Wavering:
    """Verdicts of a judge that is told how sure it is: the n-th answer to a question is the same in every run."""

    _REASON = " ".join(["The output says what the passages give, and leaves nothing out that was asked for."] * 2)

    def __init__(self) -> None:
        self._asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, ask: Ask) -> dict[str, Any] | None:
        """The verdict object, of the length that judges write."""
        found = re.search(r"^=== (\w+) context 1 ===\n(.*?)\n=== \1 ", ask.text, re.MULTILINE | re.DOTALL)
        if found is None:
            return None
        self._asked[found[1], ask.rubric] += 1
        # Of the record: what the judge thinks. Of the call: what it says this time.
        mind = random.Random(found[1] + ask.rubric)
        mouth = random.Random(f"{found[1]}{ask.rubric}{self._asked[found[1], ask.rubric]}")

        def yes() -> bool:
            sure = 0.99 if mind.random() < 0.95 else 0.02
            return mouth.random() < (0.5 if mind.random() < WAVERING else sure)

        properties = ask.schema["properties"]
        if "level" in properties:
            centre = mind.betavariate(4.0, 1.0)
            return {"explanation": self._REASON, "level": round(1 + 4 * min(1.0, max(0.0, mouth.gauss(centre, 0.12))))}
        if "items" in properties:
            items = {name: "yes" if yes() else "no" for name in properties["items"]["properties"]}
            return {"explanation": self._REASON, "items": items}
        quote = " ".join(found[2].split()[:8])
        claims = [
            {
                "claim": self._REASON[:60],
                "quote": quote,
                "context": 1,
                "verdict": "supported" if yes() else "unsupported",
            }
            for _ in range(5)
        ]
        return {"claims": claims}


@dataclass(frozen=True, slots=True)
class Repeated:
    """A way to repeat, and what came of it."""

    mode: Mode
    #: by rubric, for each record: whether it passed
    passes: dict[str, list[bool]]

    def row(self, base: float, always: Repeated) -> str:
        """A line of the table: the cost, and what the repeated rubrics made of it, against `always`."""
        pairs = [pair for name in BANDS for pair in zip(self.passes[name], always.passes[name], strict=True)]
        ratio = sum(own for own, _ in pairs) / len(pairs)
        differs = sum(own != other for own, other in pairs) / len(pairs)
        return f"{self.mode.row(base)} {ratio:.3f} | {differs:.3f} |"


def repeated(count: int) -> list[Repeated]:
    """One verdict, more where it is in doubt, always more; of the same judge, who says the same in each way."""
    once = load_rubrics()
    adaptive = [replace(r, repeats=Repeats(most=MOST, band=BANDS[r.name])) if r.name in BANDS else r for r in once]
    always = [replace(r, repeats=Repeats(most=MOST)) if r.name in BANDS else r for r in once]
    records = [rag_record(index) for index in range(count)]
    found = []
    for name, rubrics in (
        ("one verdict", once),
        (f"`repeats: {{most: {MOST}, band: ...}}`", adaptive),
        (f"`repeats: {{most: {MOST}}}`", always),
    ):
        with FakeJudgeServer(verdict=Wavering()) as server:
            scores = asyncio.run(judged(records, rubrics, server.base_url, temperature=0.7))
            seen = server.traffic
        mode = Mode(name, count, seen.calls, seen.prompt_tokens, seen.completion_tokens, cost_of(scores))
        found.append(Repeated(mode, {r.name: [record[r.name].passed for record in scores] for r in once}))
    return found


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
    ways = repeated(count)
    one_verdict = ways[0].mode.cost_usd / count * 1000
    return {
        "repeats": "\n".join(
            [
                "| asked | calls/record | prompt tokens | completion tokens | USD per 1,000 records | of one verdict "
                "| pass ratio | outcomes unlike always |",
                "|---|--:|--:|--:|--:|--:|--:|--:|",
                *(way.row(one_verdict, ways[-1]) for way in ways),
            ]
        ),
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
