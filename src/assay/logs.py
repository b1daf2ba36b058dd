"""Logs of the worker side: structlog over the standard library, JSON for machines, columns for a terminal.

The app-side client logs through the standard library alone and is not configured here.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING

import structlog

from assay.terminal import plain

if TYPE_CHECKING:
    from typing import TextIO

    from assay.settings import Settings

_SHARED: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


#: Loggers of libraries that are never heard below a warning, at whatever level.
_TALKATIVE = (
    "aiohttp", "alembic", "amqp", "asyncio", "celery", "httpcore", "httpcore2", "httpx", "httpx2", "kombu", "openai",
    "psycopg", "redis",
)  # fmt: skip


def configure(settings: Settings) -> None:
    """Send every log line of this process to standard error, in the form that the settings ask for."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    renderer: list[structlog.typing.Processor]
    # Tracebacks never with local variables: they hold requests, records and keys.
    if as_json:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    else:
        renderer = [
            _plain_values,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback),
        ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    # These tell of every request, answer, command and task, some of them with URLs or headers that may hold keys.
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # Of a Redis that is away the worker tells itself, in one line.
    logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.CRITICAL)


def _plain_values(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Before the colours: what a line tells of a record or an endpoint may hold such characters of its own."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in event.items()}


def _plain_traceback(sink: TextIO, error: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    sink.write(plain(text.getvalue()))
