"""The Grafana dashboards: made by their script, right by Grafana's own types and by the rules of its linter."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from assay.catalogue import DOCUMENTED
from dashboards import FILES, ROOT, complaints, load, metrics, panels, queries, substituted, type_faults

GRAFANA = ROOT / "deploy" / "grafana"
QUALITY = GRAFANA / "dashboards" / "quality.json"


def test_there_are_four() -> None:
    assert [path.stem for path in FILES] == ["cohorts", "cost", "health", "quality"]
    assert len({load(path)["uid"] for path in FILES}) == 4


def test_the_files_are_what_the_script_makes() -> None:
    command = [sys.executable, "deploy/grafana/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_that_was_changed_by_hand_is_out_of_date(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    script.write_text((GRAFANA / "generate.py").read_text())
    subprocess.run([sys.executable, str(script)], check=True)
    (tmp_path / "dashboards" / "cost.json").write_text("{}")
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cost.json is out of date" in done.stderr
    assert "quality" not in done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_dashboard_by_grafanas_types(path: Path) -> None:
    assert type_faults(load(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_keeps_the_rules_of_the_linter(path: Path) -> None:
    assert complaints(load(path)) == []


def test_everything_an_operator_must_see_is_on_some_panel() -> None:
    asked = set().union(*(metrics(query.expr) for path in FILES for query in queries(load(path))))
    left_out = {doc.name for doc in DOCUMENTED} - asked
    #: intervals and other views of something that is shown, or for joins and rules
    by_design = {
        name
        for name in left_out
        if name.startswith(("assay_judge_", "assay_app_pass_ratio_", "assay_pass_ratio_", "assay_score_mean_"))
        or name.endswith(("_ci_lower", "_ci_upper", "_info"))
    } | {
        "assay_app_window_interactions",
        "assay_budget_limit_tokens",
        "assay_budget_remaining_tokens",
        "assay_budget_reserved_tokens",
        "assay_budget_reserved_usd",
        "assay_budget_reset_timestamp_seconds",
        "assay_calibration_labels",
        "assay_calibration_level",
        "assay_calibration_state",
        "assay_canary_records",
        "assay_collect_waiting_bytes",
        "assay_change_reference_ratio",
        "assay_dead_letters_total",
        "assay_defects_moved_total",
        "assay_defects_moved_weighted_total",
        "assay_defects_total",
        "assay_exporter_errors_total",
        "assay_pass_threshold_ratio",
        "assay_recovered_total",
        "assay_signal_effective_records",
        "assay_window_pending_records",
        "assay_window_records",
    }
    assert left_out - by_design == set()


# -- the checks themselves: each finds its fault


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    dashboard = copy.deepcopy(load(QUALITY))
    change(dashboard)
    return dashboard


def first(dashboard: dict[str, Any], kind: str = "timeseries") -> dict[str, Any]:
    return next(panel for panel in panels(dashboard) if panel["type"] == kind)


def ask(dashboard: dict[str, Any], expr: str) -> None:
    first(dashboard)["targets"][0]["expr"] = expr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: first(d).update(title=""), "panel-title-description"),
        (lambda d: first(d).pop("description"), "panel-title-description"),
        (lambda d: first(d)["fieldConfig"]["defaults"].pop("unit"), "panel-units"),
        (lambda d: first(d).update(datasource={"type": "prometheus", "uid": "abc"}), "panel-datasource"),
        (lambda d: first(d)["targets"][0].update(datasource={"uid": "abc"}), "of a query"),
        (lambda d: first(d)["targets"].clear(), "panel-no-targets"),
        (lambda d: first(d)["targets"][1].update(refId="A"), "two queries have one letter"),
        (lambda d: first(d)["targets"][1].pop("refId"), "or one has none"),
        (lambda d: d["templating"]["list"].pop(0), "no variable for the data source"),
        (lambda d: d["templating"]["list"][1].update(datasource={"uid": "abc"}), "app has one of its own"),
        (lambda d: d["templating"]["list"][1].update(refresh=1), "template-on-time-change-reload: app"),
        (lambda d: d["templating"]["list"][1].pop("label"), "template-label: app"),
        (lambda d: d.update(editable=True), "uneditable"),
        (lambda d: d["panels"][1].update(id=1), "two panels have one id"),
        (lambda d: d["panels"][1]["gridPos"].update(y=0), "overlap"),
        (lambda d: d["panels"][1]["gridPos"].update(w=25), "outside the grid"),
        (lambda d: ask(d, "assay_pass_rate"), "no metric of assay"),
        (lambda d: ask(d, "sum(assay_records_total)"), "target-counter-rate"),
        (lambda d: ask(d, "sum(rate(assay_records_total[5m]))"), "target-rate-interval"),
        (lambda d: ask(d, "rate(assay_records_total[$__rate_interval])"), "target-counter-agg"),
        (lambda d: ask(d, "sum(rate(assay_pass_ratio[$__rate_interval]))"), "target-gauge-rate"),
        (lambda d: ask(d, "sum(assay_score_bucket)"), "target-counter-rate"),
        (lambda d: ask(d, 'assay_queue_records{instance="a"}'), "target-instance"),
        (lambda d: ask(d, 'assay_pass_ratio{app="$unheard_of"}'), "unknown variable $unheard_of"),
    ],
)
def test_a_broken_rule_is_found(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert any(said in complaint for complaint in complaints(broken(change)))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(heading="x"), ".heading: no such field"),
        (lambda d: d.update(title=5), ".title: 5"),
        (lambda d: d.update(schemaVersion="40"), ".schema_version"),
        (lambda d: d.update(graphTooltip=7), ".graph_tooltip"),
        (lambda d: d.update(panels={}), "panels"),
        (lambda d: d["time"].update(until="now"), ".time.until"),
        (lambda d: first(d).update(colour="red"), ".colour: no such field"),
        (lambda d: first(d)["gridPos"].update(w="12"), ".grid_pos.w"),
        (lambda d: first(d)["options"]["legend"].update(placement="above"), ".placement"),
        (lambda d: first(d)["options"]["tooltip"].update(modus="multi"), ".tooltip.modus: no such field"),
        (lambda d: first(d)["fieldConfig"]["defaults"]["custom"].update(lineWidth="2"), ".line_width"),
        (lambda d: first(d)["fieldConfig"]["defaults"]["custom"].update(drawStyle="curve"), ".draw_style"),
        (lambda d: first(d)["fieldConfig"]["defaults"].update(einheit="s"), ".einheit: no such field"),
        (lambda d: first(d)["targets"][0].update(instant="yes"), ".instant"),
        (lambda d: first(d)["targets"][0].update(query="up"), ".query: no such field"),
        (lambda d: first(d, "stat")["options"].update(colorMode="loud"), ".color_mode"),
        (lambda d: first(d, "stat")["options"]["reduceOptions"].update(calc="last"), ".calc: no such field"),
        (lambda d: first(d, "table")["transformations"][0].update(nme="merge"), ".nme: no such field"),
        (lambda d: first(d, "table")["options"].update(cellHeight="tiny"), ".cell_height"),
        (lambda d: first(d, "heatmap")["options"]["color"].update(steps="many"), ".steps"),
        (lambda d: d["templating"]["list"][1].update(sort="up"), ".sort"),
        (lambda d: d["templating"]["list"][1].update(typ="query"), ".typ: no such field"),
        (lambda d: d["annotations"]["list"][0].update(enable="yes"), ".enable"),
    ],
)
def test_a_wrong_type_is_found(change: Callable[[dict[str, Any]], object], where: str) -> None:
    found = type_faults(broken(change))
    assert any(where in fault for fault in found), found


def test_variables_are_filled_in() -> None:
    expr = 'sum by ($by) (rate(assay_records_total{app=~"${app}"}[$__rate_interval])) / $__range_s'
    assert substituted(expr, app="shop") == 'sum by (route) (rate(assay_records_total{app=~"shop"}[5m])) / 3600'
    with pytest.raises(KeyError):
        substituted("$unheard_of")


# -- how Grafana gets them


def test_compose_mounts_what_the_provisioning_names() -> None:
    yaml = YAML(typ="safe")
    (provider,) = yaml.load((GRAFANA / "provisioning/dashboards/assay.yml").read_text())["providers"]
    services = yaml.load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


def test_the_types_are_those_of_the_grafana_that_compose_runs() -> None:
    from importlib.metadata import version

    image = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["image"]
    grafana = image.rsplit(":", 1)[1].split(".")
    assert version("grafana-foundation-sdk").split("!")[1].split(".")[:2] == grafana[:2]


def test_no_dashboard_is_tied_to_one_place() -> None:
    for path in FILES:
        text = json.dumps(load(path))
        assert "http://" not in text
        assert "localhost" not in text
