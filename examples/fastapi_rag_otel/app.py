"""The same service, traced with OpenTelemetry and OpenInference; assay is a span processor and nothing else.

    pip install "assay[otel]" fastapi uvicorn openai openinference-instrumentation-openai
    uvicorn app:app

OPENAI_BASE_URL and OPENAI_API_KEY say which model answers, ASSAY_REDIS_URL where the records go.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from openai import AsyncOpenAI
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from assay.otel import RecordingSpanProcessor

PASSAGES = {
    "delivery": "Delivery to Norway takes 4 to 6 working days.",
    "returns": "Goods can be returned within 30 days of delivery.",
    "price": "Orders over 100 euros ship free.",
}
MODEL = os.environ.get("MODEL", "gpt-5-mini")

provider = TracerProvider(resource=Resource({"service.name": "fastapi-rag-otel"}))
provider.add_span_processor(RecordingSpanProcessor(app="fastapi-rag-otel"))
OpenAIInstrumentor().instrument(tracer_provider=provider)
tracer = provider.get_tracer("fastapi-rag-otel")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with AsyncOpenAI() as openai:
        app.state.openai = openai
        yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan)


def search(question: str) -> list[str]:
    """The passages that share a word with the question, with a span that says what was found."""
    with tracer.start_as_current_span("search", attributes={"openinference.span.kind": "RETRIEVER"}) as span:
        words = set(question.lower().replace("?", "").split())
        found = [(key, text) for key, text in PASSAGES.items() if words & set(text.lower().replace(".", "").split())]
        for place, (key, text) in enumerate(found):
            span.set_attribute(f"retrieval.documents.{place}.document.id", key)
            span.set_attribute(f"retrieval.documents.{place}.document.content", text)
    return [text for _, text in found]


@app.get("/ask")
async def ask(question: str) -> dict[str, str]:
    with tracer.start_as_current_span("GET /ask", attributes={"http.route": "/ask"}):
        passages = search(question)
        reply = await app.state.openai.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": "Answer from these passages only:\n" + "\n".join(passages)},
                {"role": "user", "content": question},
            ],
        )
    return {"answer": reply.choices[0].message.content or ""}
