"""assay scores the answers of LLM applications in production.

An application needs `Client` and little else; importing this package loads nothing until a name is used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not typing.TYPE_CHECKING: loading typing takes longer than all the rest

if TYPE_CHECKING:
    from typing import Any

    from assay.buffer import Stats
    from assay.client import Client, Interaction
    from assay.errors import AssayError
    from assay.records import Context, Feedback, Message, Record, ToolEvent, Usage
    from assay.redaction import Redactor
    from assay.sampling import ALWAYS_TAKE, Rule

    __version__: str

__all__ = [
    "ALWAYS_TAKE",
    "AssayError",
    "Client",
    "Context",
    "Feedback",
    "Interaction",
    "Message",
    "Record",
    "Redactor",
    "Rule",
    "Stats",
    "ToolEvent",
    "Usage",
    "__version__",
]

_MODULES = {
    "AssayError": "assay.errors",
    "Client": "assay.client",
    "Context": "assay.records",
    "ALWAYS_TAKE": "assay.sampling",
    "Feedback": "assay.records",
    "Interaction": "assay.client",
    "Message": "assay.records",
    "Record": "assay.records",
    "Redactor": "assay.redaction",
    "Rule": "assay.sampling",
    "Stats": "assay.buffer",
    "ToolEvent": "assay.records",
    "Usage": "assay.records",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("assay")
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
