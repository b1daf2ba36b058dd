"""What the judge server answers to the requests of each library: valid, and as short as a judge of one dimension is.

A request's JSON schema, tool or function says what is wanted, of whichever library it comes. Only what states its form in
the words of the prompt needs more: that is here, in `stated`, and nowhere else.

    python benchmarks/judge_server.py --replier peers.replies:reply
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from judge_server import REPLY_CHARACTERS, by_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A dimension's share of the reply to four; a reply whose form alone is longer is as long as its form.
CHARACTERS = REPLY_CHARACTERS // 4


def reply(body: Mapping[str, Any]) -> str | dict[str, Any]:
    """To assay and the floors four verdicts in one reply; to the others one dimension, or a step on the way to it."""
    wanted = ((body.get("response_format") or {}).get("json_schema") or {}).get("name")
    if wanted == "verdicts":
        return by_schema(body)
    return by_schema(stated(body) or body, CHARACTERS)


def stated(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request with the JSON schema that its prompt states in words, where it has no other; else None."""
    asked = body.get("response_format") or {}
    if asked.get("type") == "json_schema" or body.get("tools") or body.get("functions"):
        return None
    decoder = json.JSONDecoder()
    for message in body["messages"]:
        text = str(message.get("content"))
        at = text.lower().find("json schema")
        while (at := text.find("{", at)) >= 0 and "json schema" in text[:at].lower():
            try:
                found, _ = decoder.raw_decode(text[at:])
            except ValueError:
                at += 1
                continue
            if isinstance(found, dict) and ("properties" in found or "$ref" in found):
                return {**body, "response_format": {"type": "json_schema", "json_schema": {"schema": found}}}
            at += 1
    return None
