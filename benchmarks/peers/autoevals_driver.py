"""autoevals: four ClosedQA classifiers, asked asynchronously as in its README, and its own port of ragas's metrics."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from driving import CRITERIA, DIMENSIONS, EMBEDDING_MODEL, MODEL, Case, drive, each, gathered  # isort: skip

from autoevals import ClosedQA, init
from autoevals.ragas import AnswerRelevancy, Faithfulness
from openai import AsyncOpenAI


def closed_qa(in_flight: int) -> Any:
    init(client=AsyncOpenAI(), default_model=MODEL)
    scorer = ClosedQA()

    async def score(case: Case) -> list[float]:
        asked = f"{case.question}\n\nPassages:\n{case.context}"
        calls = (scorer.eval_async(input=asked, output=case.answer, criteria=CRITERIA[name]) for name in DIMENSIONS)
        return await each(*calls, read=attrgetter("score"))

    return gathered(in_flight, score)


def ragas_port(in_flight: int) -> Any:
    init(client=AsyncOpenAI(), default_model={"completion": MODEL, "embedding": EMBEDDING_MODEL})
    faithful, relevant, closed = Faithfulness(), AnswerRelevancy(), ClosedQA()

    async def score(case: Case) -> list[float]:
        given = {"input": case.question, "output": case.answer, "context": case.passages}
        return await each(
            faithful.eval_async(**given),
            relevant.eval_async(**given),
            *(
                closed.eval_async(input=case.question, output=case.answer, criteria=CRITERIA[name])
                for name in ("safety", "completeness")
            ),
            read=attrgetter("score"),
        )

    return gathered(in_flight, score)


if __name__ == "__main__":
    drive("autoevals", {"closed-qa": closed_qa, "ragas-port": ragas_port})
