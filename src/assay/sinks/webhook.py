"""A webhook of your own: evaluations as JSON, signed, with a time so that a captured request cannot be played again.

The signature is that of Standard Webhooks (standardwebhooks.com, version 1.0.0, "Signature scheme"): three headers,
`webhook-id`, `webhook-timestamp` (seconds) and `webhook-signature`, which is `v1,` and the base64 of HMAC-SHA256 over
`{id}.{timestamp}.{body}`. How to check one is in docs/howto/sinks.md, and a test runs what stands there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import uuid
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from assay.sinks import Annotation, SinkSettings
from assay.sinks._document import document
from assay.sinks._http import Http, json_bytes, settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.sinks import Delivery

#: Namespace of the ids of requests.
_NAMESPACE = uuid.UUID("3a0f6b52-3c7e-5f0b-9c4e-0f2d7f0a1b6d")


class Settings(SinkSettings):
    """Where the webhook is, and what signs it."""

    model_config = SettingsConfigDict(env_prefix="ASSAY_SINK_WEBHOOK_")
    about: ClassVar[str] = (
        'POSTs `{"evaluations": [...]}`, each as the `jsonl` sink writes it. Every 2xx means taken. A batch that is '
        "sent again has the same `webhook-id`; a single evaluation is known again by its `evaluation_id`."
    )

    url: str = Field(description="Where to POST to, such as `https://quality.example.com/assay`.")
    secret: SecretStr = Field(
        description="Signs every request: `whsec_` and base64 of 24 to 64 random bytes, as Standard Webhooks has it, "
        "or any text of 16 characters or more."
    )
    max_batch: int = Field(100, ge=1, le=1000, description="Most evaluations in one request.")

    @field_validator("secret")
    @classmethod
    def _long(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value().strip()) < 16:
            raise ValueError("must have 16 characters or more: make one with `openssl rand -base64 32`")
        _key(value.get_secret_value())
        return value


def build(settings: Settings) -> Webhook:
    """The sink of these settings."""
    http = Http("webhook", settings.url, timeout_seconds=settings.timeout_seconds)
    return Webhook(http, settings.secret.get_secret_value(), max_batch=settings.max_batch)


class Webhook:
    """POSTs signed batches."""

    name = "webhook"
    takes_failures = True

    def __init__(self, http: Http, secret: str, *, max_batch: int = 100) -> None:
        self._http = http
        self._key = _key(secret)
        self.max_batch = max_batch

    def deliver(self, annotations: Sequence[Annotation]) -> Sequence[Delivery]:
        """See `Sink`."""
        body = json_bytes({"evaluations": [document(annotation) for annotation in annotations]})
        # By what is in it: the same batch again has the same id.
        message_id = f"msg_{uuid.uuid5(_NAMESPACE, hashlib.sha256(body).hexdigest()).hex}"
        headers = {"content-type": "application/json", **sign(self._key, message_id, int(time.time()), body)}
        return settled(self._http.post("", content=body, headers=headers), len(annotations))

    def close(self) -> None:
        """Close its connections."""
        self._http.close()


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a request; `timestamp` is the time of sending in epoch seconds."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


def _key(secret: str) -> bytes:
    """The bytes that sign."""
    secret = secret.strip()
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ValueError("what follows whsec_ must be base64: make one with `openssl rand -base64 32`") from None
