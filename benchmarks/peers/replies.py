"""What the judge server answers to the requests of each library: valid, and as short as a judge of one dimension is.

A request's JSON schema, tool or function says what is wanted, of whichever library it comes. Only what a library states
in the words of its prompt needs more: that is here, in `stated` and `_made_clear`, and nowhere else.

    python benchmarks/judge_server.py --replier peers.replies:reply
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from judge_server import REPLY_CHARACTERS, by_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A dimension's share of the reply to four; a reply whose form alone is longer is as long as its form.
CHARACTERS = REPLY_CHARACTERS // 4
#: Claims, statements or opinions in a list of texts. 120 words would give more: this favours the libraries.
_TEXTS = 3
#: deepeval's GEval shows an example, and asks for 0 to 10.
_EXAMPLE = "**Example JSON:**"
_GEVAL = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "integer", "minimum": 0, "maximum": 10}},
}


def reply(body: Mapping[str, Any]) -> str | dict[str, Any]:
    """To assay and the floors four verdicts in one reply; to the others one dimension, or a step on the way to it."""
    asked = (body.get("response_format") or {}).get("json_schema") or {}
    if asked.get("name") == "verdicts":
        return by_schema(body)
    tools = body.get("tools") or [{"function": function} for function in body.get("functions") or ()]
    if "schema" in asked or not tools:
        schema = asked.get("schema") or stated(body)
        return by_schema(_wanting(schema) if schema else body, CHARACTERS)
    function = tools[0]["function"]
    clear = {**function, "parameters": _made_clear(json.dumps(function.get("parameters") or {}))}
    return by_schema({**body, "tools": [{"type": "function", "function": clear}]}, CHARACTERS)


def stated(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that a prompt states in words, as ragas's do, or that its example implies; None where neither."""
    for message in body["messages"]:
        text = _text(message.get("content"))
        if _EXAMPLE in text:
            return _GEVAL
        _, named, after = text.partition("JSON Schema:\n")
        if named and after.startswith("{"):
            return dict(json.JSONDecoder().raw_decode(after)[0])
    return None


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _wanting(schema: Mapping[str, Any]) -> dict[str, Any]:
    clear = _made_clear(json.dumps(schema))
    return {"messages": [{}], "response_format": {"json_schema": {"schema": clear}}}


@lru_cache(maxsize=1024)
def _made_clear(schema: str) -> dict[str, Any]:
    """The schema with what its description or the prompt tells: lists of texts have some, a `result` is yes or no."""

    def clear(part: Any) -> Any:
        if isinstance(part, list):
            return [clear(one) for one in part]
        if not isinstance(part, dict):
            return part
        made = {key: clear(value) for key, value in part.items()}
        if made.get("type") == "array" and (made.get("items") or {}).get("type") == "string":
            made["minItems"] = max(_TEXTS, made.get("minItems", 0))
        # mlflow's builtin judges.
        if made.get("description") == "The evaluation rating/result" and made.get("type") == "string":
            made.setdefault("enum", ["yes", "no"])
        return made

    return dict(clear(json.loads(schema)))
