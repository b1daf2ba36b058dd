"""The shipped Grafana dashboards as tests read them: their queries, what is wrong with them by the rules of Grafana's
own linter, and what is wrong with them by Grafana's own types.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from assay.catalogue import DOCUMENTED

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))

_TYPES = {doc.name: doc.type for doc in DOCUMENTED}


def load(path: Path) -> dict[str, Any]:
    """One dashboard."""
    return json.loads(path.read_text("utf-8"))


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel but rows, those of collapsed rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


class Asked(NamedTuple):
    """One query of a dashboard, and where it stands."""

    dashboard: str
    panel: str
    expr: str


def queries(dashboard: dict[str, Any]) -> Iterator[Asked]:
    """Every query of every panel."""
    for panel in panels(dashboard):
        for target in panel.get("targets", ()):
            yield Asked(dashboard["uid"], panel["title"], target["expr"])


def metrics(expr: str) -> set[str]:
    """Names of the metrics in a query, those of histograms without their suffix."""
    return {_plain(name) for name in re.findall(r"\bassay_[a-z0-9_]+", expr)}


def _plain(name: str) -> str:
    bare = re.sub(r"_(bucket|count|sum)$", "", name)
    return bare if _TYPES.get(bare) == "histogram" else name


def substituted(expr: str, **variables: str) -> str:
    """A query as Grafana would send it, with everything chosen where `variables` does not say otherwise."""
    chosen = {
        "__rate_interval": "5m",
        "__range": "1h",
        "__range_s": "3600",
        "app": ".*",
        "rubric": ".*",
        "window": "1h",
        "by": "route",
    } | variables
    return re.sub(r"\$\{?(\w+)\}?", lambda found: chosen[found[1]], expr)


# -- the rules of grafana/dashboard-linter that apply, and two of our own (grid, known metrics)


def complaints(dashboard: dict[str, Any]) -> list[str]:
    """What the rules say against a dashboard; nothing when it is well made."""
    found = list(_about_the_whole(dashboard))
    for panel in panels(dashboard):
        found += [f"{panel.get('title') or panel.get('id')}: {said}" for said in _about_panel(panel)]
    return found


def _about_the_whole(dashboard: dict[str, Any]) -> Iterator[str]:
    variables = dashboard["templating"]["list"]
    if not any(v["type"] == "datasource" and v["name"] == "datasource" for v in variables):
        yield "template-datasource: no variable for the data source"
    if dashboard.get("editable") is not False:
        yield "uneditable: what is changed in the browser would be lost"
    for variable in variables:
        if variable["type"] == "query" and variable.get("refresh") != 2:
            yield f"template-on-time-change-reload: {variable['name']}"
        if variable["type"] != "datasource" and variable.get("datasource", {}).get("uid") != "${datasource}":
            yield f"template-datasource: {variable['name']} has one of its own"
        if not variable.get("label"):
            yield f"template-label: {variable['name']}"
    known = {v["name"] for v in variables} | {"__rate_interval", "__range", "__range_s", "datasource"}
    for name in re.findall(r"\$\{?(\w+)", " ".join(expr for _, _, expr in queries(dashboard))):
        if name not in known:
            yield f"unknown variable ${name}"
    yield from _about_places(dashboard)


def _about_places(dashboard: dict[str, Any]) -> Iterator[str]:
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    taken: dict[tuple[int, int], int] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"panel {panel['id']} is outside the grid"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    yield f"panels {taken[x, y]} and {panel['id']} overlap"
                    return
                taken[x, y] = panel["id"]


def _about_panel(panel: dict[str, Any]) -> Iterator[str]:
    if not panel.get("title") or not panel.get("description"):
        yield "panel-title-description"
    if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
        yield "panel-units"
    if panel.get("datasource", {}).get("uid") != "${datasource}":
        yield "panel-datasource"
    if not panel.get("targets"):
        yield "panel-no-targets"
    letters = [target.get("refId") for target in panel.get("targets", ())]
    if len(set(letters)) != len(letters) or None in letters:
        yield "two queries have one letter, or one has none"
    for target in panel.get("targets", ()):
        if target.get("datasource", {}).get("uid") != "${datasource}":
            yield "panel-datasource: of a query"
        yield from _about_query(target["expr"])


def _about_query(expr: str) -> Iterator[str]:
    for interval in re.findall(r"\[([^\]]*)\]", expr):
        if not re.fullmatch(r"\$__(rate_interval|range)", interval):
            yield f"target-rate-interval: [{interval}] is fixed"
    if re.search(r"\binstance\s*[=!]", expr):
        yield "target-instance: it goes by the address of a process"
    for found in re.finditer(r"\bassay_[a-z0-9_]+", expr):
        name = found[0]
        plain = _plain(name)
        kind = _TYPES.get(plain)
        if kind is None:
            yield f"{name} is no metric of assay"
        counts = kind == "counter" or (kind == "histogram" and plain != name)
        before, after = expr[: found.start()], expr[found.end() :]
        rated = re.search(r"\b(rate|increase)\($", before) and re.match(r"(\{[^}]*\})?\[", after)
        if counts and not rated:
            yield f"target-counter-rate: {name} only grows"
        if not counts and rated:
            yield f"target-gauge-rate: {name} is no counter"
        if counts and not re.search(r"\b(sum|max|avg|count)\b", expr):
            yield f"target-counter-agg: {name} is of one process"


# -- Grafana's own types, as its foundation SDK has them


def type_faults(dashboard: dict[str, Any]) -> list[str]:
    """Where a dashboard is not one by Grafana's types: unknown fields, values of a wrong type.

    The SDK is generated from Grafana's schema, panel by panel. Its `from_json` drops what it does not know and takes
    any value, so the result is compared with what went in, and each field with its annotation. A field that is missing
    has a default there, and is not found.
    """
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return list(_type_faults_of(dashboard, Dashboard, ""))


def _type_faults_of(given: dict[str, Any], model: Any, where: str) -> Iterator[str]:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    try:
        parsed = model.from_json(given)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        yield f"{where}: no {model.__name__}: {type(error).__name__}: {error}"
        return
    yield from _lost(given, json.loads(JSONEncoder().encode(parsed)), where)
    yield from _mistyped(parsed, model, where)


def _model(expected: Any) -> Any:
    """The class of the SDK that a value should be of, None when it may be something else."""
    union = typing.get_origin(expected) in (typing.Union, types.UnionType)
    members = [one for one in (typing.get_args(expected) if union else (expected,)) if hasattr(one, "from_json")]
    return members[0] if len(members) == 1 else None


def _lost(given: Any, back: Any, where: str) -> Iterator[str]:
    """What was given and did not come back."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            if key not in back:
                yield f"{where}.{key}: no such field"
            else:
                yield from _lost(value, back[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(back, list):
        if len(given) != len(back):
            yield f"{where}: {len(given)} became {len(back)}"
        for index, (one, other) in enumerate(zip(given, back, strict=False)):
            yield from _lost(one, other, f"{where}[{index}]")
    elif given != back:
        yield f"{where}: {given!r} became {back!r}"


def _mistyped(value: Any, expected: Any, where: str) -> Iterator[str]:
    """Where a value is not what its annotation says; the fields of an object are looked at too."""
    if isinstance(value, dict) and (model := _model(expected)) is not None:
        # Some lists are left as they came: parsed here.
        yield from _type_faults_of(value, model, where)
        return
    if not _fits(value, expected):
        yield f"{where}: {value!r} is no {expected}"
        return
    if isinstance(value, list):
        (of,) = typing.get_args(_chosen(value, expected)) or (Any,)
        for index, item in enumerate(value):
            yield from _mistyped(item, of, f"{where}[{index}]")
    elif isinstance(value, dict) and len(arguments := typing.get_args(_chosen(value, expected))) == 2:
        for key, item in value.items():
            yield from _mistyped(item, arguments[1], f"{where}.{key}")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models") and not isinstance(value, Enum):
        for name, annotation in typing.get_type_hints(type(value)).items():
            yield from _mistyped(getattr(value, name), annotation, f"{where}.{name}")


def _chosen(value: Any, expected: Any) -> Any:
    """The member of a union that `value` is."""
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return next(one for one in typing.get_args(expected) if _fits(value, one))
    return expected


def _fits(value: Any, expected: Any) -> bool:
    origin = typing.get_origin(expected)
    if expected in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(expected))
    if origin is typing.Literal:
        return value in typing.get_args(expected)
    if origin is not None:
        return isinstance(value, origin)
    if expected is None or expected is type(None):
        return value is None
    if isinstance(expected, type) and issubclass(expected, Enum):
        # `from_json` leaves some as their plain value.
        return isinstance(value, expected) or value in [member.value for member in expected]
    if expected in (int, float):
        return isinstance(value, int if expected is int else (int, float)) and not isinstance(value, bool)
    # What a plugin adds is annotated by a base class that it does not always inherit.
    return isinstance(value, expected) or expected.__module__.endswith("cog.variants")
