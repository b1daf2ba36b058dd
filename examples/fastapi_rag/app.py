"""A question-answering service over a few synthetic passages, scored with assay: three lines are about it.

    pip install assay fastapi uvicorn openai
    uvicorn app:app

OPENAI_BASE_URL and OPENAI_API_KEY say which model answers, ASSAY_REDIS_URL where the records go.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from openai import AsyncOpenAI

import assay

PASSAGES = {
    "delivery": "Delivery to Norway takes 4 to 6 working days.",
    "returns": "Goods can be returned within 30 days of delivery.",
    "price": "Orders over 100 euros ship free.",
}
MODEL = os.environ.get("MODEL", "gpt-5-mini")

client = assay.Client(app="fastapi-rag")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with AsyncOpenAI() as openai:
        app.state.openai = openai
        yield
    client.close()


app = FastAPI(lifespan=lifespan)


def search(question: str) -> list[str]:
    """The passages that share a word with the question."""
    words = set(question.lower().replace("?", "").split())
    return [text for text in PASSAGES.values() if words & set(text.lower().replace(".", "").split())]


@app.get("/ask")
async def ask(question: str) -> dict[str, str]:
    async with client.interaction(input=question, route="/ask") as interaction:
        interaction.contexts = passages = search(question)
        reply = await app.state.openai.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": "Answer from these passages only:\n" + "\n".join(passages)},
                {"role": "user", "content": question},
            ],
        )
        choice = reply.choices[0]
        interaction.output, interaction.finish_reason, interaction.model = (
            choice.message.content,
            choice.finish_reason,
            reply.model,
        )
    return {"answer": choice.message.content or ""}
