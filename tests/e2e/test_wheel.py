"""What is shipped: the wheel, and what it asks for."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            target,
            ROOT,
        ],
        check=True,
        capture_output=True,
    )
    (found,) = target.glob("assay-*.whl")
    return found


def test_the_wheel_holds_the_data_it_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    rubrics = {f"assay/data/rubrics/{path.name}" for path in (ROOT / "rubrics").glob("*.yaml")}
    assert len(rubrics) == 4
    assert rubrics <= names
    assert {"assay/py.typed", "assay/data/prices.yaml", "assay/data/demo.json", "assay/migrations/env.py"} <= names
    assert any(name.startswith("assay/migrations/versions/") and name.endswith(".py") for name in names)
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)


def test_the_base_install_asks_for_redis_alone(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    wanted = [
        line.removeprefix("Requires-Dist: ")
        for line in archive.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert [name.partition(">")[0] for name in wanted] == ["redis"]


def test_the_wheel_works_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import assay, assay.rubrics, assay.store, sys\n"
        f"assert assay.__file__.startswith({str(tmp_path)!r}), assay.__file__\n"
        "assert len(assay.rubrics.load_rubrics()) == 4\n"
        f"store = assay.store.Store('sqlite:///{tmp_path}/a.db'); store.upgrade(); store.check(); store.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
