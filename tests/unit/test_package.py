"""What `import assay` promises: few names, loaded late, nothing but the standard library, and quick."""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

import assay
from assay.store import Store

#: Everything the app's side is made of.
CLIENT_MODULES = [
    "assay.client",
    "assay.buffer",
    "assay.interactions",
    "assay.sampling",
    "assay.redaction",
    "assay._identifiers",
    "assay._folding",
    "assay.queue",
    "assay.queue._batch",
    "assay.queue._bells",
    "assay.queue._scripts",
    "assay.connections",
    "assay.records",
    "assay.errors",
]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that some code loads in a new interpreter, beyond those it starts with."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def foreign(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"assay"}


def test_names() -> None:
    assert assay.__all__ == sorted(assay.__all__, key=lambda name: (name.upper() != name, name))
    assert len(assay.__all__) <= 15
    assert set(assay.__all__) >= {"Client", "Record", "Context", "Message", "ToolEvent", "Feedback", "Usage", "Rule"}


@pytest.mark.parametrize("name", assay.__all__)
def test_every_name_is_there(name: str) -> None:
    value = getattr(assay, name)
    assert value is getattr(assay, name)
    if isinstance(value, type):
        assert value.__name__ == name
        assert value.__doc__


def test_every_lazy_name_is_exported_from_its_module() -> None:
    assert set(assay._MODULES) == set(assay.__all__) - {"__version__"}
    for name, module in assay._MODULES.items():
        assert getattr(importlib.import_module(module), name) is getattr(assay, name)


def test_version() -> None:
    assert assay.__version__ == version("assay")


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'assay' has no attribute 'Clint'"):
        assay.Clint  # noqa: B018


def test_dir_and_star() -> None:
    assert set(assay.__all__) <= set(dir(assay))
    names: dict[str, object] = {}
    exec("from assay import *", names)
    assert set(assay.__all__) <= set(names)


def test_import_loads_nothing() -> None:
    assert loaded_by("import assay") <= {"assay", "__future__"}


@pytest.mark.parametrize("module", CLIENT_MODULES)
def test_the_client_side_is_standard_library(module: str) -> None:
    assert foreign(loaded_by(f"import {module}")) == set()


def test_a_client_in_the_making_is_standard_library() -> None:
    code = "from assay import Client; client = Client(redact=None); client.stats(); client.flush(); client.close()"
    assert foreign(loaded_by(code)) == set()


def test_a_disabled_client_never_loads_redis() -> None:
    code = (
        "from assay import Client; client = Client(enabled=False)\n"
        "client.record(input='a')\n"
        "with client.interaction(input='a') as it: pass\n"
        "client.observe(lambda question: 'a')('q')\n"
        "client.close()"
    )
    assert foreign(loaded_by(code)) == set()


def test_the_client_side_needs_none_of_the_worker() -> None:
    modules = loaded_by("\n".join(f"import {module}" for module in CLIENT_MODULES))
    assert {name for name in modules if name.startswith("assay.")} == set(CLIENT_MODULES)
    assert "asyncio" not in modules


#: What takes long to import, and no command loads before it needs it.
LATE = {"alembic", "celery", "numpy", "openai", "aiohttp", "prometheus_client", "redis", "sqlalchemy", "structlog"}


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--version"], set()),
        (["rubrics", "check"], set()),
        (["rubrics", "show", "safety", "--json"], set()),
        (["alerts", "generate", "--help"], set()),
        (["enqueue", "--help"], set()),
        (["calibrate", "--help"], set()),
        (["labels", "import", "--help"], set()),
        (["db", "new-key"], {"sqlalchemy"}),
        (["dead", "list"], {"sqlalchemy"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_loads_only_what_it_uses(
    arguments: list[str], needed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_DATABASE_URL", f"sqlite:///{tmp_path}/assay.db")
    with closing(Store(f"sqlite:///{tmp_path}/assay.db")) as store:
        store.upgrade()
    # What it prints is not what it has loaded.
    loaded = loaded_by(
        "import contextlib\n"
        "from assay.cli import app\n"
        "with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):\n"
        f"    app({arguments!r}, standalone_mode=False)"
    )
    assert foreign(loaded) & LATE == needed


def test_no_command_loads_numpy_or_openai_before_it_is_used() -> None:
    modules = loaded_by(
        "import typer.main, assay.tasks, assay.worker, assay.cli\n"
        "list(typer.main.get_command(assay.cli.app).commands.values())"
    )
    assert {"assay.cli._calibrate", "assay.cli._processes", "celery"} <= modules
    assert not {"numpy", "openai"} & modules
