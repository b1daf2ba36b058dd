"""Options that several commands read the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay import wiring
from assay.errors import ConfigError, SettingsError
from assay.settings import load_settings
from assay.spelling import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.rubrics import Rubric
    from assay.settings import Settings


Apps = Annotated[
    list[str] | None, typer.Option("--app", help="Only this app; repeatable. Default: `ASSAY_APPS`, or all.")
]


def settings_of(apps: Sequence[str] | None, **overrides: object) -> Settings:
    """The settings, confined to the apps that were asked for: some of ASSAY_APPS, where that is set.

    Raises:
        SettingsError: another app was asked for, or none.
    """
    settings = load_settings(**overrides)
    if not apps:
        return settings
    if not all(app.strip() for app in apps):
        raise SettingsError("--app: name an app; without --app all of them are shown")
    beyond = set(apps) - set(settings.apps)
    if settings.apps and beyond:
        raise SettingsError(f"--app {min(beyond)}: not one of ASSAY_APPS, which is {','.join(settings.apps)}")
    return load_settings(**overrides, apps=tuple(apps))


def check_known(option: str, given: str | None, known: Sequence[str]) -> None:
    """Refuse a filter by a name that there is not: to find nothing would read as if all were well.

    Raises:
        ConfigError: it is not known.
    """
    if given is not None and given not in known:
        raise ConfigError(f"{option} {given!r}: {suggestion(given, known)}")


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str] | None:
    """What a repeatable `NAME=VALUE` option was given, None when it was not.

    Raises:
        ConfigError: one of them is no such pair.
    """
    if not given:
        return None
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {text!r}: write NAME=VALUE")
        found[name] = value
    return found


def is_file(name: str) -> bool:
    """Whether a rubric is named by its file."""
    return name.endswith((".yaml", ".yml"))


def one_rubric(settings: Settings, name: str) -> Rubric:
    """The rubric of a name or a file.

    Raises:
        ConfigError: there is none, or the file is wrong.
    """
    from assay.rubrics import load_rubrics

    if is_file(name):
        return load_rubrics([Path(name)])[0]
    known = {rubric.name: rubric for rubric in wiring.read_rubrics(settings)}
    if name not in known:
        raise ConfigError(f"no rubric is called {name!r}: there are {', '.join(known)}, or name a rubric file")
    return known[name]


def chosen_rubrics(settings: Settings, names: Sequence[str]) -> list[Rubric]:
    """The rubrics of these names and files; of none, those of the settings.

    Raises:
        ConfigError: there is none of that name, or a file is wrong.
    """
    from assay.rubrics import load_rubrics

    files = [Path(name) for name in names if is_file(name)]
    wanted = {name for name in names if not is_file(name)}
    rubrics = load_rubrics(files) if files else []
    if wanted or not names:
        known = wiring.read_rubrics(settings)
        if absent := wanted - {r.name for r in known}:
            raise ConfigError(f"no rubric is called {min(absent)!r}: there are {', '.join(r.name for r in known)}")
        rubrics += [r for r in known if not names or r.name in wanted]
    return rubrics
