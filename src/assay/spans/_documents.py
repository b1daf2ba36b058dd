"""The documents that a retrieval span tells of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from assay.spans._messages import unflattened
from assay.spans._span import RESULT_EVENTS, Span
from assay.spans._values import read, short_text, text_in

MOST_DOCUMENTS: Final = 200
_DOCUMENT_KEYS: Final = ("content", "page_content", "text", "document", "body")


def documents_of(span: Span) -> list[dict[str, Any]]:
    """The documents of a retrieval span that have a text."""
    attributes = span.attributes
    rows: list[Any] = []
    for prefix in ("reranker.output_documents.", "retrieval.documents."):
        rows = rows or unflattened(attributes, prefix, "document.")
    if not rows:
        rows = _list(attributes.get("gen_ai.retrieval.documents"))
    if not rows:
        for event in span.events[:MOST_DOCUMENTS]:
            for prefix in RESULT_EVENTS:
                if event.name == prefix:
                    named = {str(name).removeprefix(f"{prefix}."): v for name, v in event.attributes.items()}
                    rows.append(named)
    for name in ("langfuse.observation.output", "mlflow.spanOutputs", "output.value"):
        rows = rows or _list(attributes.get(name))
    documents = (_document(row) for row in rows[:MOST_DOCUMENTS])
    return [document for document in documents if document is not None]


def _list(value: object) -> list[Any]:
    value = read(value)
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("documents", "results", "matches") if key in value), None)
    return list(value[:MOST_DOCUMENTS]) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _document(row: object) -> dict[str, Any] | None:
    row = read(row)
    if isinstance(row, str):
        return {"text": row, "id": None, "score": None} if row.strip() else None
    if not isinstance(row, Mapping):
        return None
    text = next((text_in(row[key]) for key in _DOCUMENT_KEYS if row.get(key)), "")
    score = row.get("score")
    usable = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    identity = short_text(row.get("id"))
    if identity is None and isinstance(metadata := read(row.get("metadata")), Mapping):
        identity = short_text(metadata.get("chunk_id", metadata.get("doc_uri")))
    return {"text": text, "id": identity, "score": score if usable else None} if text else None
