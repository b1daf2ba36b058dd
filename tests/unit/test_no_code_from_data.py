"""Nothing that comes in is ever run: no pickle, no eval, no shell, and Celery takes JSON alone."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.message import Message

from assay import tasks
from assay.settings import load_settings

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for part in ("src", "docs", "benchmarks", "deploy", "examples") for path in (ROOT / part).rglob("*.py")
)
#: Modules that make objects, and so run code, of bytes.
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}


def offences(tree: ast.AST) -> list[str]:
    """What a source does that could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {name.name}" for name in node.names if name.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(f"from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name in {"os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}:
                found.append(name)
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg == "shell" and value != "False":
                    found.append(f"{name}(shell={value})")
                if keyword.arg == "typ" and value not in ("'safe'", "'rt'"):
                    found.append(f"{name}(typ={value})")
                if keyword.arg == "allow_pickle" and value != "False":
                    found.append(f"{name}(allow_pickle={value})")
    return found


@pytest.mark.parametrize(
    ("text", "many"),
    [
        ("import pickle", 1),
        ("from marshal import loads", 1),
        ("eval(x)", 1),
        ("yaml.load(x)", 1),
        ("subprocess.run(x, shell=True)", 1),
        ("YAML(typ='unsafe')", 1),
        ("numpy.load(f, allow_pickle=True)", 1),
        ("re.compile(x); subprocess.run([x], shell=False); YAML(typ='safe')", 0),
    ],
)
def test_the_search_finds(text: str, many: int) -> None:
    assert len(offences(ast.parse(text))) == many


def test_no_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 150
    found = {str(path.relative_to(ROOT)): offences(ast.parse(path.read_text())) for path in SOURCES}
    assert {path: what for path, what in found.items() if what} == {}


def test_celery_takes_and_gives_json_alone() -> None:
    app = tasks._connected(load_settings(redis_url="redis://127.0.0.1:1/0"))
    assert list(app.conf.accept_content) == ["json"]
    assert list(app.conf.result_accept_content) == ["json"]
    assert {app.conf.task_serializer, app.conf.result_serializer, app.conf.event_serializer} == {"json"}


def test_a_pickled_message_is_not_opened(tmp_path: Path) -> None:
    """The same bytes that would run, in kombu's hands; `tests/e2e/test_main_job.py` has one on a real broker's list."""

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    app = tasks._connected(load_settings(redis_url="redis://127.0.0.1:1/0"))
    message = Message(
        body=pickle.dumps(Runs()),
        content_type="application/x-python-serialize",
        content_encoding="binary",
        accept=set(app.conf.accept_content),
    )
    with pytest.raises(ContentDisallowed):
        message.decode()
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Runs()))
    assert (tmp_path / "ran").exists(), "else the test proves nothing"
