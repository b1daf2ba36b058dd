"""`assay alerts`: rule files for Prometheus, made from the rubrics and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay import wiring
from assay.alerts import differences, rule_files
from assay.cli._screen import output
from assay.errors import ConfigError, SettingsError
from assay.settings import load_settings

app = typer.Typer(help="Alerting rules for Prometheus, made from the rubrics and the settings.", no_args_is_help=True)

_Directory = Annotated[Path, typer.Option(help="Directory of the rule files.", file_okay=False)]
_DEFAULT = Path("deploy/prometheus/rules")


@app.command()
def generate(out: _Directory = _DEFAULT) -> None:
    """Write the rule files; those of rubrics that are gone are removed, files of other origin are left alone."""
    files = _files()
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = _read(out)
        for name in differences(files, found):
            if name in files:
                (out / name).write_text(files[name])
                output.print(f"wrote {out / name}", markup=False, highlight=False, soft_wrap=True)
            else:
                (out / name).unlink()
                output.print(f"removed {out / name}", markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}: name a directory that can be written to") from None


@app.command()
def check(out: _Directory = _DEFAULT) -> None:
    """Say which rule file is not what the rubrics and settings make it. Exit code 3 when one is not, 0 when none."""
    files = _files()
    if not out.is_dir():
        raise ConfigError(f"--out {out}: there is no such directory: assay alerts generate --out {out}")
    wrong = differences(files, _read(out))
    for name, reason in wrong.items():
        output.print(f"{out / name} {reason}", markup=False, highlight=False, soft_wrap=True)
    if wrong:
        where = "" if out == _DEFAULT else f" --out {out}"
        output.print(f"mend: assay alerts generate{where}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(3)


def _files() -> dict[str, str]:
    settings = load_settings()
    policy = wiring.alert_policy(settings)
    if lacking := [window for window in policy.windows if window not in settings.windows]:
        raise SettingsError(f"ASSAY_WINDOWS: the rules read the window {lacking[0]}: add it")
    return rule_files(wiring.read_rubrics(settings), policy)


def _read(directory: Path) -> dict[str, str]:
    """Content of the rule files that are there."""
    return {path.name: path.read_text(errors="replace") for path in directory.glob("*.yml")}
