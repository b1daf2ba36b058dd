"""Makes the corpus of spans again: real instrumentation libraries against a local fake OpenAI server.

    python -m venv .spans && .spans/bin/pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http "wrapt<2" \
        opentelemetry-instrumentation-openai-v2==2.3b0 opentelemetry-util-genai opentelemetry-instrumentation-openai \
        openai langchain-openai openinference-instrumentation-openai openinference-instrumentation-langchain
    .spans/bin/python tests/data/spans/make.py

`otel-latest` is made with opentelemetry-util-genai itself, which writes the present conventions for the instrumentation
libraries of OpenTelemetry: openai-v2 2.3b0 writes content as events only, and 2.4b0 does not import with any util-genai
to be had. `openllmetry` is opentelemetry-instrumentation-openai, which traceloop-sdk installs.

Each dialect is captured in a process of its own, as the OTLP JSON that an exporter sends, with the versions of the
libraries. All texts are synthetic. Times are those of the capture; ids are fixed by a seed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
DIALECTS = (
    "otel-latest",
    "otel-older-events",
    "openllmetry",
    "openinference-openai",
    "openinference-langchain",
    "otel-without-content",
)
LIBRARIES = {
    "otel-latest": {"opentelemetry-util-genai"},
    "otel-older-events": {"opentelemetry-instrumentation-openai-v2"},
    "otel-without-content": {"opentelemetry-instrumentation-openai-v2"},
    "openllmetry": {"opentelemetry-instrumentation-openai"},
    "openinference-openai": {"openinference-instrumentation-openai"},
    "openinference-langchain": {"openinference-instrumentation-langchain", "langchain-core", "langchain-openai"},
}
SYSTEM = "Answer from the passages. Synthetic shop."
QUESTION = "How long does delivery to Norway take?"
PASSAGES = ("Delivery to Norway takes 4 to 6 working days.", "Orders over 100 euros ship free.")
ANSWER = "Delivery to Norway takes 4 to 6 working days."


class _Api(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = body["messages"][-1].get("content") or ""
        if "fail" in said:
            return self._send(400, {"error": {"message": "synthetic refusal", "type": "invalid_request_error"}})
        usage = {"prompt_tokens": 42, "completion_tokens": 9, "total_tokens": 51}
        head = {"id": "chatcmpl-synthetic", "created": 1_700_000_000, "model": "gpt-5-mini-2026-01-01"}
        if body.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            pieces = [{"role": "assistant", "content": ""}, {"content": ANSWER[:20]}, {"content": ANSWER[20:]}]
            for piece in pieces:
                self._event(head | {"object": "chat.completion.chunk", "choices": [_delta(piece, None)]})
            self._event(head | {"object": "chat.completion.chunk", "choices": [_delta({}, "stop")]})
            self._event(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
            return None
        message: dict[str, object] = {"role": "assistant", "content": ANSWER}
        reason = "length" if "cut" in said else "stop"
        if body.get("tools") and body["messages"][-1]["role"] == "user":
            call = {"name": "delivery_days", "arguments": '{"country": "NO"}'}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
            reason = "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return self._send(200, head | {"object": "chat.completion", "choices": [choice], "usage": usage})

    def _event(self, chunk: object) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _delta(delta: object, reason: str | None) -> object:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def capture(dialect: str) -> None:
    """Run every scenario under one instrumentation, and write what an OTLP exporter would send."""
    from google.protobuf.json_format import MessageToDict
    from opentelemetry import trace
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        def __init__(self) -> None:
            self._random = random.Random(dialect)

        def generate_span_id(self) -> int:
            return self._random.getrandbits(64)

        def generate_trace_id(self) -> int:
            return self._random.getrandbits(128)

    resource = Resource({"service.name": "synthetic-shop"})
    spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
    provider = TracerProvider(resource=resource, id_generator=Ids())
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    log_provider = LoggerProvider(resource=resource)
    log_provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
    set_logger_provider(log_provider)
    _instrument(dialect, provider, log_provider)

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    make = {"openinference-langchain": _langchain_scenarios, "otel-latest": _genai_scenarios}
    scenarios = make.get(dialect, _openai_scenarios)(url)
    found = {}
    for name, run in scenarios.items():
        spans.clear()
        logs.clear()
        with trace.get_tracer("synthetic-app").start_as_current_span(f"GET /{name}"):
            if dialect not in make:
                _retrieve(dialect)
            run()
        finished = logs.get_finished_logs()
        found[name] = {
            "traces": _without_paths(MessageToDict(encode_spans(spans.get_finished_spans()))),
            "logs": MessageToDict(encode_logs(finished)) if finished else None,
        }
    server.shutdown()
    libraries = sorted(
        f"{d.name} {d.version}"
        for d in importlib.metadata.distributions()
        if d.name in LIBRARIES[dialect] | {"openai", "opentelemetry-sdk"}
    )
    (HERE / f"{dialect}.json").write_text(
        json.dumps({"note": "synthetic", "libraries": libraries, "scenarios": found}, indent=1) + "\n"
    )
    print(dialect, {name: len(v["traces"]["resourceSpans"][0]["scopeSpans"]) for name, v in found.items()})


def _without_paths(traces: dict) -> dict:
    """Without the paths of the machine that made them."""
    for resource in traces["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for event in span.get("events", []):
                    event["attributes"] = [a for a in event.get("attributes", []) if a["key"] != "exception.stacktrace"]
    return traces


def _instrument(dialect: str, provider: object, log_provider: object) -> None:
    if dialect == "otel-latest":
        return
    if dialect.startswith("otel"):
        from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

        OpenAIInstrumentor().instrument(tracer_provider=provider, logger_provider=log_provider)
    elif dialect == "openllmetry":
        from opentelemetry.instrumentation.openai import OpenAIInstrumentor as Traceloop

        Traceloop().instrument(tracer_provider=provider)
    elif dialect == "openinference-openai":
        from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInference

        OpenInference().instrument(tracer_provider=provider)
    else:
        from openinference.instrumentation.langchain import LangChainInstrumentor

        LangChainInstrumentor().instrument(tracer_provider=provider)


def _retrieve(dialect: str) -> None:
    """A retrieval span by hand, as the dialect's convention has it: none of these libraries retrieves."""
    from opentelemetry import trace

    with trace.get_tracer("synthetic-retriever").start_as_current_span("retrieval shop") as span:
        if dialect.startswith("openinference"):
            span.set_attribute("openinference.span.kind", "RETRIEVER")
            span.set_attribute("input.value", QUESTION)
            for place, text in enumerate(PASSAGES):
                span.set_attribute(f"retrieval.documents.{place}.document.id", f"doc-{place}")
                span.set_attribute(f"retrieval.documents.{place}.document.score", 0.9 - place / 10)
                span.set_attribute(f"retrieval.documents.{place}.document.content", text)
        elif dialect == "openllmetry":
            span.set_attribute("db.system", "chroma")
            for place, text in enumerate(PASSAGES):
                event = {"db.query.result.id": f"doc-{place}", "db.query.result.distance": 0.1 + place / 10}
                span.add_event("db.query.result", event | {"db.query.result.document": text})
        else:
            span.set_attribute("gen_ai.operation.name", "retrieval")
            documents = [
                {"id": f"doc-{place}", "score": 0.9 - place / 10, "content": text}
                for place, text in enumerate(PASSAGES)
            ]
            if dialect == "otel-without-content":
                documents = [{"id": document["id"], "score": document["score"]} for document in documents]
            span.set_attribute("gen_ai.retrieval.documents", json.dumps(documents))


def _openai_scenarios(url: str) -> dict[str, object]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="synthetic", max_retries=0)
    tools = [{"type": "function", "function": {"name": "delivery_days", "parameters": {"type": "object"}}}]

    def ask(question: str, **more: object) -> object:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        return client.chat.completions.create(model="gpt-5-mini", messages=messages, **more)

    def stream() -> None:
        for _ in ask(QUESTION, stream=True, stream_options={"include_usage": True}):
            pass

    def use_tool() -> None:
        call = ask(QUESTION, tools=tools).choices[0].message
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": None, "tool_calls": [c.model_dump() for c in call.tool_calls]},
            {"role": "tool", "tool_call_id": "call_1", "content": "4 to 6"},
        ]
        client.chat.completions.create(model="gpt-5-mini", messages=messages, tools=tools)

    def fail() -> None:
        with contextlib.suppress(openai.BadRequestError):
            ask("please fail")

    return {
        "rag": lambda: ask(QUESTION, temperature=0.5),
        "stream": stream,
        "tool": use_tool,
        "cut": lambda: ask("please be cut", max_tokens=9),
        "error": fail,
    }


def _genai_scenarios(url: str) -> dict[str, object]:
    """What an instrumentation library says of its calls to opentelemetry-util-genai."""
    from opentelemetry.util.genai import handler as genai
    from opentelemetry.util.genai import types as t

    handler = genai.TelemetryHandler()

    def text(role: str, said: str) -> t.InputMessage:
        return t.InputMessage(role=role, parts=[t.TextPart(content=said)])

    def ask(history: list[t.InputMessage], answer: list[object], reason: str) -> None:
        with handler.inference("openai", request_model="gpt-5-mini", operation_name="chat") as call:
            call.conversation_id = "conversation-7"
            call.system_instruction = [t.TextPart(content=SYSTEM)]
            call.input_messages = history
            call.output_messages = [t.OutputMessage(role="assistant", parts=answer, finish_reason=reason)]
            call.response_model_name = "gpt-5-mini-2026-01-01"
            call.response_id = "chatcmpl-synthetic"
            call.finish_reasons = [reason]
            call.input_tokens, call.output_tokens = 42, 9

    def rag() -> None:
        with handler.retrieval(data_source_id="shop", provider="chroma") as retrieval:
            retrieval.query_text = QUESTION
            retrieval.documents = [
                {"id": f"doc-{place}", "score": 0.9 - place / 10, "content": text}
                for place, text in enumerate(PASSAGES)
            ]
        ask([text("user", QUESTION)], [t.TextPart(content=ANSWER)], "stop")

    def use_tool() -> None:
        call = t.ToolCallRequestPart(name="delivery_days", arguments={"country": "NO"}, id="call_1")
        ask([text("user", QUESTION)], [call], "tool_call")
        with handler.tool("delivery_days") as tool:
            tool.arguments = {"country": "NO"}
            tool.tool_result = "4 to 6"
        history = [
            text("user", QUESTION),
            t.InputMessage(role="assistant", parts=[call]),
            t.InputMessage(role="tool", parts=[t.ToolCallResponsePart(response="4 to 6", id="call_1")]),
        ]
        ask(history, [t.TextPart(content=ANSWER)], "stop")

    def fail() -> None:
        try:
            with handler.inference("openai", request_model="gpt-5-mini", operation_name="chat") as call:
                call.input_messages = [text("user", "please fail")]
                raise RuntimeError("synthetic refusal")
        except RuntimeError:
            pass

    cut = [t.TextPart(content=ANSWER)]
    return {
        "rag": rag,
        "tool": use_tool,
        "cut": lambda: ask([text("user", "please be cut")], cut, "length"),
        "error": fail,
    }


def _langchain_scenarios(url: str) -> dict[str, object]:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import RunnablePassthrough
    from langchain_openai import ChatOpenAI

    class Retriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            return [
                Document(page_content=text, id=f"doc-{place}", metadata={"source": "shop"})
                for place, text in enumerate(PASSAGES)
            ]

    model = ChatOpenAI(base_url=url, api_key="synthetic", model="gpt-5-mini", max_retries=0)
    prompt = ChatPromptTemplate([("system", SYSTEM), ("user", "{context}\n\n{question}")])
    found = {"context": Retriever() | (lambda docs: "\n".join(d.page_content for d in docs))}
    chain = found | {"question": RunnablePassthrough()} | prompt | model | StrOutputParser()
    return {"rag": lambda: chain.invoke(QUESTION), "stream": lambda: list(chain.stream(QUESTION))}


def main() -> None:
    if len(sys.argv) > 1:
        return capture(sys.argv[1])
    for dialect in DIALECTS:
        environment = os.environ | {
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only",
            "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        }
        if dialect == "otel-older-events":
            environment |= {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
            del environment["OTEL_SEMCONV_STABILITY_OPT_IN"]
        elif dialect == "otel-without-content":
            environment["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "no_content"
        subprocess.run([sys.executable, __file__, dialect], env=environment, check=True)
    return None


if __name__ == "__main__":
    main()
