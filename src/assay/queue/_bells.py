"""The doorbell: a message of Celery that carries a batch id, as kombu's Redis transport would have written it."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Final

#: Name of the Celery task that a doorbell calls, with the batch id as its only argument.
TASK: Final = "assay.score_batch"
#: Name of the task that does a chore of the workers, with its name as the only argument.
CHORE_TASK: Final = "assay.chore"


def is_doorbell(item: bytes) -> bool:
    """Whether something from the broker's list is a message of ours that Celery can read."""
    try:
        message = json.loads(item)
        properties, body = message["properties"], message["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
        args, kwargs = json.loads(body)[:2]
        delivery = properties["delivery_info"]
        readable = all(isinstance(delivery[name], str) for name in ("exchange", "routing_key"))
        readable &= isinstance(properties["delivery_tag"], str) and message["content-type"] == "application/json"
        headers = message["headers"]
        readable &= isinstance(headers["id"], str) and headers["task"] in (TASK, CHORE_TASK)
        readable &= kwargs == {} and len(args) == 1
        return bool(readable and all(isinstance(arg, str) for arg in args))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def ragas_bells(queue: str) -> str:
    """The broker's list of the doorbells that are for workers that have ragas."""
    return f"{queue}.ragas"


def doorbell(queue: str, batch_id: str) -> str:
    """The message that makes a Celery worker on `queue` score a batch: LPUSH it to the list `queue`.

    It is Celery's protocol 2 in JSON, in the envelope of kombu's Redis transport.
    """
    return bell_template(queue).replace("@BATCH@", batch_id).replace("@RING@", f"{batch_id}.{uuid.uuid4().hex}")


def bell_template(queue: str) -> str:
    """A doorbell with the marks @BATCH@ (the batch's id) and @RING@ (an id of its own) still to be filled in.

    The scripts fill in @LIST@, where the name of the list stands.
    """
    headers = {
        "lang": "py",
        "task": TASK,
        "id": "@RING@",
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "@RING@",
        "parent_id": None,
        "argsrepr": "['@BATCH@']",
        "kwargsrepr": "{}",
        "origin": "assay",
        "ignore_result": True,
    }
    properties = {
        "correlation_id": "@RING@",
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "delivery_tag": "@RING@",
    }
    body = json.dumps([["@BATCH@"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    # Without body_encoding the body is plain text: no base64, which a Lua script could not write.
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )
