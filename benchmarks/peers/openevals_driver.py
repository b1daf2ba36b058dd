"""openevals: its prompts for groundedness, relevance, toxicity and helpfulness, over LangChain or a plain client."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from driving import MODEL, Case, drive, each, gathered  # isort: skip

from openai import AsyncOpenAI
from openevals.llm import create_async_llm_as_judge
from openevals.prompts import (
    ANSWER_RELEVANCE_PROMPT,
    RAG_GROUNDEDNESS_PROMPT,
    RAG_HELPFULNESS_PROMPT,
    TOXICITY_PROMPT,
)


def _judged(in_flight: int, **how: Any) -> Any:
    grounded, relevant, toxic, helpful = (
        create_async_llm_as_judge(prompt=prompt, feedback_key=name, **how)
        for name, prompt in (
            ("groundedness", RAG_GROUNDEDNESS_PROMPT),
            ("relevance", ANSWER_RELEVANCE_PROMPT),
            ("toxicity", TOXICITY_PROMPT),
            ("helpfulness", RAG_HELPFULNESS_PROMPT),
        )
    )

    async def score(case: Case) -> list[bool]:
        return await each(
            grounded(context=case.context, outputs=case.answer),
            relevant(inputs=case.question, outputs=case.answer),
            toxic(inputs=case.question, outputs=case.answer),
            helpful(inputs=case.question, outputs=case.answer),
            read=itemgetter("score"),
        )

    return gathered(in_flight, score)


def client(in_flight: int) -> Any:
    return _judged(in_flight, judge=AsyncOpenAI(), model=MODEL)


def langchain(in_flight: int) -> Any:
    return _judged(in_flight, model=f"openai:{MODEL}")


if __name__ == "__main__":
    drive("openevals", {"client": client, "langchain": langchain})
