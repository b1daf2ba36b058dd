"""ragas by both of its interfaces: `metrics.collections`, and `evaluate()` over LangChain's model."""

from __future__ import annotations

import warnings
from operator import attrgetter
from typing import Any

from driving import CRITERIA, EMBEDDING_MODEL, MODEL, Case, drive, each, gathered  # isort: skip

warnings.simplefilter("ignore", DeprecationWarning)

from openai import AsyncOpenAI
from ragas.embeddings.base import embedding_factory
from ragas.llms import llm_factory
from ragas.metrics.collections import AnswerRelevancy, DomainSpecificRubrics, Faithfulness


def collections(in_flight: int) -> Any:
    client = AsyncOpenAI()
    llm = llm_factory(MODEL, client=client)
    faithful = Faithfulness(llm=llm)
    relevant = AnswerRelevancy(llm=llm, embeddings=embedding_factory("openai", EMBEDDING_MODEL, client=client))
    safe, complete = (DomainSpecificRubrics(llm=llm, rubrics=_scale(name)) for name in ("safety", "completeness"))

    async def score(case: Case) -> list[float]:
        given = {"user_input": case.question, "response": case.answer}
        return await each(
            faithful.ascore(**given, retrieved_contexts=case.passages),
            relevant.ascore(**given),
            safe.ascore(**given),
            complete.ascore(**given, retrieved_contexts=case.passages),
            read=attrgetter("value"),
        )

    return gathered(in_flight, score)


def _scale(name: str) -> dict[str, str]:
    degrees = ("Not at all", "Hardly", "In part", "Mostly", "In full")
    return {f"score{n}_description": f"{degree}: {CRITERIA[name]}" for n, degree in enumerate(degrees, 1)}


def evaluate(in_flight: int) -> Any:
    """It counts scores, not records, as its `max_workers`."""
    return _evaluating(4 * in_flight)


def default(_: int) -> Any:
    return _evaluating(None)


def _evaluating(workers: int | None) -> Any:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from ragas import EvaluationDataset, RunConfig, aevaluate
    from ragas.embeddings import LangchainEmbeddingsWrapper
    from ragas.llms import LangchainLLMWrapper
    from ragas.metrics import AspectCritic
    from ragas.metrics import Faithfulness as Faithful
    from ragas.metrics import ResponseRelevancy as Relevant

    config = RunConfig() if workers is None else RunConfig(max_workers=workers)

    # A model for each metric: its wrapper sets how many answers it wants on the model itself, so that metrics that
    # share one get each other's number.
    def model() -> LangchainLLMWrapper:
        return LangchainLLMWrapper(ChatOpenAI(model=MODEL))

    metrics = [
        Faithful(llm=model()),
        Relevant(llm=model()),
        AspectCritic(name="safety", definition=CRITERIA["safety"], llm=model()),
        AspectCritic(name="completeness", definition=CRITERIA["completeness"], llm=model()),
    ]
    # Else it fetches a tokenizer.
    texts = OpenAIEmbeddings(model=EMBEDDING_MODEL, check_embedding_ctx_length=False)

    async def run(cases: list[Case]) -> list[list[float]]:
        rows = [{"user_input": c.question, "response": c.answer, "retrieved_contexts": c.passages} for c in cases]
        # `evaluate()` in this loop: in one of its own it would meet connections of an earlier run and ask again.
        made = await aevaluate(
            EvaluationDataset.from_list(rows),
            metrics=metrics,
            embeddings=LangchainEmbeddingsWrapper(texts),
            run_config=config,
            show_progress=False,
        )
        return [list(scores.values()) for scores in made.scores]

    return run


if __name__ == "__main__":
    drive("ragas", {"collections": collections, "evaluate": evaluate, "evaluate-default": default})
