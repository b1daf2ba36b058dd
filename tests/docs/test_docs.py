"""What the docs say is so: blocks run, links lead somewhere, generated pages are current."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command import assay

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
RUN = sorted([ROOT / "README.md", *(ROOT / "docs" / "tutorial").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in RUN if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run_and_deliver(page: Path, redis_url: str, tmp_path: Path) -> None:
    for block in blocks(page, "python"):
        file = tmp_path / "block.py"
        file.write_text(block.replace("redis://localhost:6379/0", redis_url))
        done = subprocess.run(
            [sys.executable, str(file)],
            capture_output=True,
            text=True,
            env=os.environ | {"ASSAY_REDIS_URL": redis_url},
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


def test_the_readme_example_reaches_redis(redis_url: str, tmp_path: Path) -> None:
    from assay.queue import Queue

    (block,) = blocks(ROOT / "README.md", "python")
    environment = os.environ | {"ASSAY_REDIS_URL": redis_url}
    subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path, env=environment, capture_output=True)
    queue = Queue.from_url(redis_url)
    assert queue.depth().records == 1
    queue.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_that_the_docs_name_exists() -> None:
    import typer.main

    from assay.cli import app

    group = typer.main.get_command(app)
    named = set()
    for page in PAGES:
        for block in blocks(page, "console"):
            named |= {
                tuple(words)
                for words in re.findall(r"^\$ assay ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*))?", block, re.MULTILINE)
            }
        named |= {tuple(words) for words in re.findall(r"`assay ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*))?", page.read_text())}
    assert len(named) > 10
    for name, child in named:
        assert name in group.commands, f"assay {name}"  # type: ignore[attr-defined]
        children = getattr(group.commands[name], "commands", None)  # type: ignore[attr-defined]
        if children and child:
            assert child in children, f"assay {name} {child}"


def test_every_setting_and_metric_that_the_docs_name_exists() -> None:
    from assay.settings import Settings

    references = ("settings.md", "client.md", "sinks.md")
    settings = "".join((ROOT / "docs/reference" / name).read_text() for name in references)
    assert all(f"`ASSAY_{name.upper()}`" in settings for name in Settings.model_fields)
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    extra = {"ASSAY_SECRETS_DIR", "ASSAY_E2E_RECORDS", "ASSAY_FUZZ_EXAMPLES"}
    # Names of roles and tables.
    sql = "".join(path.read_text() for path in (ROOT / "deploy/postgresql").glob("*.sql"))
    ours = {"assay_database_url", *re.findall(r"\bassay_[a-z_]+\b", sql)}
    for page in PAGES:
        if ROOT / "docs/reference" in page.parents:
            continue
        text = page.read_text()
        for name in set(re.findall(r"\bASSAY_[A-Z_]+\b", text)) - extra:
            assert f"`{name}`" in settings, f"{page.name} names {name}"
        for name in set(re.findall(r"\bassay_[a-z_]+\b", text)) - ours:
            assert f"`{name}`" in metrics or f"`{name.removesuffix('_total')}" in metrics, f"{page.name} names {name}"


def test_generated_pages_are_current() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 600


def test_the_changelog_tells_of_this_version() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "docs/security.md").read_text()
    rows = [line for line in page.partition("## Claims and their tests")[2].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, f"no test proves: {row}"
        for file, test in named:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (
                f"{file} has no {test}"
            )


def test_the_session_of_calibrating_is_what_is_seen(tmp_path: Path) -> None:
    """The page says that every number in it was seen: its commands are run, and each line that it shows is printed."""
    page = ROOT / "docs/howto/calibrate.md"
    for name in ("rubrics", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    shown = blocks(page, "text")
    asked = [line.removeprefix("$ ") for block in shown for line in block.splitlines() if line.startswith("$ ")]
    seen = ""
    for line in [line for block in blocks(page, "sh")[:3] for line in block.splitlines()] + asked:
        if line.startswith("assay "):
            done = assay(tmp_path, *shlex.split(line)[1:], ASSAY_DATA_DIR=str(tmp_path / "data"), NO_COLOR="1")
            seen += done.stdout + done.stderr
        else:
            subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert len(shown) == 5
    for line in "".join(shown).splitlines():
        if line.strip() not in ("", "...") and not line.startswith("$ "):
            assert line.rstrip() in seen
