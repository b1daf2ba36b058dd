"""Writes the Grafana dashboards: `python deploy/grafana/generate.py`; with `--check` it only says what is out of date.

A dashboard's JSON is mostly layout. Here is what a person decides: which question a panel answers, by which query, in
which unit. Standard library only. `tests/unit/test_dashboards.py` holds the result against Grafana's own types and the
rules of its dashboard linter, `tests/integration/test_dashboards.py` asks every query of a real Prometheus.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "dashboards"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Colours say one thing everywhere: what the judge says, what people would say, what was promised, what is wrong.
JUDGE, PEOPLE, OBJECTIVE, BAD, QUIET = "blue", "purple", "green", "red", "gray"

#: The label set of scores, as the dashboards narrow it down.
SCORE = 'app=~"$app", rubric=~"$rubric"'
#: Evaluations that somebody was asked for.
ASKED = 'outcome=~"scored|failed"'
WINDOW = f'{SCORE}, window="$window"'


def target(expr: str, legend: str = "", *, table: bool = False, exemplar: bool = False) -> dict[str, Any]:
    """One query: over time, or (`table`) as of now."""
    found: dict[str, Any] = {"datasource": DATASOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend}
    if table:
        return found | {"format": "table", "instant": True, "range": False}
    return found | {"range": True, "instant": False} | ({"exemplar": True} if exemplar else {})


def now(expr: str, legend: str = "") -> dict[str, Any]:
    """One query, of which only the present value is asked."""
    return target(expr, legend) | {"range": False, "instant": True}


def panel(
    kind: str,
    title: str,
    description: str,
    targets: list[dict[str, Any]],
    *,
    unit: str,
    width: int = 12,
    height: int = 8,
    defaults: dict[str, Any] | None = None,
    overrides: list[dict[str, Any]] | None = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One panel; place and id come later. `unit` is one of Grafana's, such as `percentunit`, `s`, `short`."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": [{"refId": letters[index]} | one for index, one in enumerate(targets)],
        "fieldConfig": {"defaults": {"unit": unit} | (defaults or {}), "overrides": overrides or []},
        "options": options or {},
    } | more


def lines(title: str, description: str, *targets: dict[str, Any], unit: str, **more: Any) -> dict[str, Any]:
    """Lines over time; a gap stays a gap, because no sample means that nothing is known."""
    custom = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 0, "showPoints": "auto", "spanNulls": False}
    stacked = more.pop("stacked", False)
    if stacked:
        custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40, "lineWidth": 1}
    defaults = {"custom": custom} | more.pop("defaults", {})
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, description, list(targets), unit=unit, defaults=defaults, options=options, **more)


def stat(title: str, description: str, *targets: dict[str, Any], unit: str, **more: Any) -> dict[str, Any]:
    """Numbers as of now."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": more.pop("color", "none"),
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": more.pop("text", "auto"),
        "orientation": "auto",
    }
    defaults = {"noValue": "–"} | more.pop("defaults", {})
    return panel("stat", title, description, list(targets), unit=unit, defaults=defaults, options=options, **more)


def table(title: str, description: str, columns: dict[str, str], *, unit: str, **more: Any) -> dict[str, Any]:
    """A row for each label set, a column for each query; queries must give the same labels."""
    renamed = {f"Value #{letter}": name for letter, name in zip("ABCDEFGHIJKLMNOP", columns, strict=False)}
    if len(columns) == 1:
        renamed = {"Value": next(iter(columns))}
    hidden = dict.fromkeys(("Time", *more.pop("hidden", ())), True)
    return panel(
        "table",
        title,
        description,
        [target(expr, table=True) for expr in columns.values()],
        unit=unit,
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": hidden, "renameByName": renamed, "indexByName": {}}},
        ],
        **more,
    )


def heatmap(title: str, description: str, expr: str, *, unit: str, **more: Any) -> dict[str, Any]:
    """A histogram over time."""
    options = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 32, "exponent": 0.5, "fill": "blue", "reverse": False},
        "yAxis": {"axisPlacement": "left", "unit": unit},
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "exemplars": {"color": "orange"},
        "showValue": "never",
        "filterValues": {"le": 1e-9},
    }
    one = target(expr, "{{le}}", exemplar=True) | {"format": "heatmap"}
    return panel("heatmap", title, description, [one], unit=unit, options=options, **more)


def row(title: str, *, repeat: str = "") -> dict[str, Any]:
    """A heading; with `repeat` the panels below it come once for each value of that variable."""
    found: dict[str, Any] = {
        "type": "row",
        "title": title,
        "collapsed": False,
        "panels": [],
        "gridPos": {"h": 1, "w": 24},
    }
    return found | ({"repeat": repeat} if repeat else {})


def named(name: str, **properties: Any) -> dict[str, Any]:
    """How the line of this name is drawn."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key.replace("_", "."), "value": value} for key, value in properties.items()],
    }


def coloured(name: str, colour: str, **more: Any) -> dict[str, Any]:
    """A line of a fixed colour."""
    return named(name, color={"mode": "fixed", "fixedColor": colour}, **more)


def band(name: str, colour: str) -> list[dict[str, Any]]:
    """A line with the area between `NAME low` and `NAME high` around it."""
    low, high = f"{name} low", f"{name} high"
    return [
        coloured(name, colour),
        coloured(low, colour, custom_lineWidth=0),
        coloured(high, colour, custom_lineWidth=0, custom_fillBelowTo=low, custom_fillOpacity=15),
    ]


def steps(*pairs: tuple[float | None, str]) -> dict[str, Any]:
    """Thresholds: from this value on, this colour."""
    return {"thresholds": {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in pairs]}}


def variable(name: str, label: str, query: str, *, many: bool = False, regex: str = "") -> dict[str, Any]:
    """A choice that the dashboard reads out of Prometheus itself."""
    found: dict[str, Any] = {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "variable"},
        "regex": regex,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
    }
    if many:
        found |= {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"], "selected": True}}
    return found


def a_window(metric: str = "assay_app_window_records") -> dict[str, Any]:
    """The window of the gauges; an hour unless another is chosen."""
    return variable("window", "Window", f"label_values({metric}, window)") | {
        "current": {"text": "1h", "value": "1h", "selected": True}
    }


APP = variable("app", "App", "label_values(assay_app_window_records, app)")
APPS = variable("app", "App", "label_values(assay_app_window_records, app)", many=True)
RUBRIC = variable("rubric", "Rubric", 'label_values(assay_app_window_records{app=~"$app"}, rubric)', many=True)


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: list[dict[str, Any]],
    panels: list[dict[str, Any]],
    annotations: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A whole dashboard: panels are numbered, and set from left to right and top to bottom."""
    x = y = tallest = 0
    for index, one in enumerate(panels, start=1):
        place = one["gridPos"]
        if x + place["w"] > 24 or one["type"] == "row":
            x, y, tallest = 0, y + tallest, 0
        one["id"] = index
        one["gridPos"] = {"x": x, "y": y, "w": place["w"], "h": place["h"]}
        x, tallest = x + place["w"], max(tallest, place["h"])
    datasource = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["assay"],
        "timezone": "browser",
        "editable": False,
        "graphTooltip": 1,
        "time": {"from": "now-24h", "to": "now"},
        "refresh": "1m",
        "schemaVersion": 40,
        "templating": {"list": [datasource, *variables]},
        "annotations": {"list": annotations or []},
        "links": [
            {
                "type": "dashboards",
                "title": "assay",
                "tags": ["assay"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }


# -- quality


def quality() -> dict[str, Any]:
    """How good the answers are: each dimension apart, never one number for all."""
    ratio, corrected = "assay_app_pass_ratio", "assay_app_pass_ratio_corrected"
    labels = "app, rubric, rubric_version, judge"
    objective = (
        f"max by ({labels}) (0 * {ratio}{{{WINDOW}}})"
        " + on (rubric, rubric_version) group_left () max by (rubric, rubric_version) (assay_objective_ratio)"
    )
    summary = {
        "pass rate": f"max by ({labels}) ({ratio}{{{WINDOW}}})",
        "low": f"max by ({labels}) ({ratio}_ci_lower{{{WINDOW}}})",
        "high": f"max by ({labels}) ({ratio}_ci_upper{{{WINDOW}}})",
        "corrected": f"max by ({labels}) ({corrected}{{{WINDOW}}})",
        "corrected low": f"max by ({labels}) ({corrected}_ci_lower{{{WINDOW}}})",
        "corrected high": f"max by ({labels}) ({corrected}_ci_upper{{{WINDOW}}})",
        "objective": objective,
        "effective records": f"max by ({labels}) (assay_app_window_effective_records{{{WINDOW}}})",
    }
    panels = [
        row("Now"),
        table(
            "Pass rate by rubric",
            "What the judge passes, and what people would pass where a calibration can say it; with 95 % intervals. "
            "Under 30 effective records a number is a rumour.",
            summary,
            unit="percentunit",
            width=18,
            height=8,
            overrides=[named("effective records", unit="short", decimals=0)],
            defaults={"decimals": 1, "noValue": "–"},
        ),
        stat(
            "What has changed",
            "The verdict of the canary, a fixed set that is judged again: product, judge, unknown, or none. While it "
            "says judge, believe no quality panel.",
            now('max by (rubric, verdict) (assay_drift_verdict{rubric=~"$rubric"} == 1)', "{{rubric}}: {{verdict}}"),
            unit="none",
            width=6,
            height=8,
            text="name",
        ),
        row("$rubric", repeat="rubric"),
        lines(
            "Pass rate",
            "Raw: what the judge passes, of all interactions (weighted by 1 / sampling probability). Corrected: what "
            "people would pass. Bands are 95 % intervals. While two versions of a rubric score there are two of each.",
            target(f"{ratio}{{{WINDOW}}}", "raw"),
            target(f"{ratio}_ci_lower{{{WINDOW}}}", "raw low"),
            target(f"{ratio}_ci_upper{{{WINDOW}}}", "raw high"),
            target(f"{corrected}{{{WINDOW}}}", "corrected"),
            target(f"{corrected}_ci_lower{{{WINDOW}}}", "corrected low"),
            target(f"{corrected}_ci_upper{{{WINDOW}}}", "corrected high"),
            target(objective, "objective"),
            unit="percentunit",
            width=12,
            height=9,
            defaults={"max": 1},
            overrides=[
                *band("raw", JUDGE),
                *band("corrected", PEOPLE),
                coloured("objective", OBJECTIVE, custom_lineStyle={"fill": "dash", "dash": [8, 6]}),
            ],
        ),
        lines(
            "Change evidence",
            "Log e-value that the pass rate fell below its reference. It alarms at the threshold, whenever one looks: "
            "the false-alarm rate holds under continuous watching.",
            target(f"assay_change_evidence{{{SCORE}}}", "evidence {{rubric_version}}"),
            target(f"assay_change_threshold{{{SCORE}}}", "threshold"),
            target(f"assay_change_alarm{{{SCORE}}}", "alarm"),
            unit="short",
            width=6,
            height=9,
            overrides=[
                coloured("threshold", BAD, custom_lineStyle={"fill": "dash", "dash": [8, 6]}),
                coloured("alarm", BAD, custom_drawStyle="bars", custom_fillOpacity=30),
            ],
        ),
        lines(
            "Defects",
            "What is wrong with the answers that did not pass, a second; weighted to all interactions.",
            target(f"sum by (defect) (rate(assay_defects_weighted_total{{{SCORE}}}[$__rate_interval]))", "{{defect}}"),
            unit="cps",
            width=6,
            height=9,
            stacked=True,
        ),
        lines(
            "Mean score",
            "Mean score of all interactions, with its 95 % interval. It moves before the pass rate where scores slide "
            "without crossing the threshold.",
            target(f"assay_app_score_mean{{{WINDOW}}}", "mean"),
            target(f"assay_app_score_mean_ci_lower{{{WINDOW}}}", "mean low"),
            target(f"assay_app_score_mean_ci_upper{{{WINDOW}}}", "mean high"),
            unit="percentunit",
            width=8,
            height=7,
            overrides=band("mean", JUDGE),
        ),
        lines(
            "Effective records",
            "Equally weighted records that would tell as much as those of the window. Rules wait for 30.",
            target(f"assay_app_window_effective_records{{{WINDOW}}}", "effective {{rubric_version}}"),
            target(f"assay_app_window_records{{{WINDOW}}}", "scored {{rubric_version}}"),
            unit="short",
            width=8,
            height=7,
            defaults={"min": 0},
        ),
        stat(
            "Can the level be believed?",
            "State of the corrected pass rate: ok, too_wide, stale, no_calibration or refused. Level alerts fire in ok "
            "only.",
            now(
                f"max by (rubric_version, judge, state) (assay_app_calibration_state{{{WINDOW}}} == 1)",
                "{{rubric_version}} {{judge}}: {{state}}",
            ),
            unit="none",
            width=8,
            height=7,
            text="name",
        ),
        row("Beside the scores"),
        lines(
            "Signals: shares",
            "Read off the records, without a judge: share cut off by length, refusals, tool failures, empty answers.",
            target('assay_signal_share{app=~"$app", window="$window"}', "{{signal}}"),
            unit="percentunit",
            defaults={"min": 0},
        ),
        lines(
            "Signals: means",
            "Means read off the records, such as lengths and retrieval scores, each in its own unit.",
            target('assay_signal_mean{app=~"$app", window="$window"}', "{{signal}}"),
            unit="short",
        ),
        lines(
            "Input shift",
            "Population stability index of the input against its reference week, over the critical value that chance "
            "reaches: above 1 the questions have changed.",
            target(
                'assay_input_shift_psi{app=~"$app"} / (assay_input_shift_psi_critical{app=~"$app"} > 0)', "{{feature}}"
            ),
            unit="short",
            defaults={"min": 0},
        ),
        lines(
            "Input shift: chance",
            "p-value that the input is as in the reference week. Small for long means that it is not.",
            target('assay_input_shift_p_value{app=~"$app"}', "{{feature}}"),
            unit="short",
            defaults={"min": 0, "max": 1},
        ),
        heatmap(
            "Scores",
            "How scores are spread, as they are stored (unweighted). Dots lead to traces.",
            f"sum by (le) (increase(assay_score_bucket{{{SCORE}}}[$__rate_interval]))",
            unit="short",
            width=24,
        ),
    ]
    alarm = {
        "name": "Quality change",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": BAD,
        "expr": 'assay_change_alarm{app=~"$app", rubric=~"$rubric"} == 1',
    }
    return dashboard(
        "assay-quality",
        "assay: quality",
        "How good the answers are, one dimension at a time, and how sure that is.",
        [APP, RUBRIC, a_window()],
        panels,
        [alarm],
    )


# -- evaluator health


def health() -> dict[str, Any]:
    """Whether the numbers of the other dashboards can be believed at all."""
    rate = "[$__rate_interval]"
    lag = "sum by (le) (rate(assay_score_lag_seconds_bucket[$__rate_interval]))"
    calls = "sum by (le, judge) (rate(assay_judge_request_seconds_bucket[$__rate_interval]))"
    state = [{"type": "value", "options": {"0": {"text": "away", "color": BAD}, "1": {"text": "up", "color": "green"}}}]
    panels = [
        row("Now"),
        stat(
            "Components",
            "What the exporter could read at its last scrape. While the database is away there are no score gauges.",
            now("min by (component) (assay_up)", "{{component}}"),
            unit="none",
            width=6,
            height=5,
            color="value",
            defaults={"mappings": state} | steps((None, BAD), (1, "green")),
        ),
        stat(
            "Oldest record on the queue",
            "How long the oldest record has waited to be judged.",
            now("max(assay_oldest_pending_seconds)"),
            unit="s",
            width=4,
            height=5,
            color="value",
            defaults=steps((None, "green"), (300, "orange"), (900, BAD)),
        ),
        stat(
            "Last score",
            "How long ago a score was stored. A flat gauge with an old score is no sign of health.",
            now("time() - max(assay_last_score_timestamp_seconds)"),
            unit="s",
            width=4,
            height=5,
            color="value",
            defaults=steps((None, "green"), (900, "orange"), (3600, BAD)),
        ),
        stat(
            "Failures",
            "Share of what judges were asked for that got no verdict, of all that was stored in the time shown.",
            now(
                'sum(increase(assay_evaluations_total{outcome="failed"}[$__range]))'
                ' / (sum(increase(assay_evaluations_total{outcome=~"scored|failed"}[$__range])) > 0)'
            ),
            unit="percentunit",
            width=4,
            height=5,
            color="value",
            defaults=steps((None, "green"), (0.02, "orange"), (0.1, BAD)),
        ),
        stat(
            "Dead letters waiting",
            "Records set aside and not replayed yet: `assay dead list`.",
            now("sum(assay_dead_letters_waiting)"),
            unit="short",
            width=3,
            height=5,
            color="value",
            defaults=steps((None, "green"), (1, "orange")),
        ),
        stat(
            "Version",
            "assay of the exporter and the workers; two while one takes over from the other.",
            now("count by (version) (assay_build_info)", "{{version}}"),
            unit="none",
            width=3,
            height=5,
            text="name",
        ),
        row("Queue and lag"),
        lines(
            "Queue",
            "Records that wait, are being judged, or are due for a retry.",
            target("max(assay_queue_records)", "records"),
            target("max(assay_queue_batches)", "batches"),
            target("max(assay_queue_ragas_records)", "records for ragas"),
            unit="short",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "In and out",
            "Records a second: taken by the queue, stored with their scores, and delivered again.",
            target(f"sum(rate(assay_queue_accepted_total{rate}))", "accepted"),
            target(f'sum(rate(assay_records_total{{outcome="received"}}{rate}))', "stored"),
            target(f'sum(rate(assay_records_total{{outcome="duplicate"}}{rate}))', "again"),
            unit="cps",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Lag",
            "Time from an interaction to its stored scores; a backfill of old records shows as a long lag.",
            target(f"histogram_quantile(0.5, {lag})", "half"),
            target(f"histogram_quantile(0.95, {lag})", "95 %", exemplar=True),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        row("Judge"),
        lines(
            "Failures by kind",
            "Evaluations without a verdict, a second. A failure is never a score.",
            target(f"sum by (kind) (rate(assay_failures_total{rate}))", "{{kind}}"),
            unit="cps",
            width=8,
            stacked=True,
        ),
        lines(
            "Judge latency",
            "Requests to the judge. Dots lead to traces.",
            target(f"histogram_quantile(0.5, {calls})", "{{judge}} half"),
            target(f"histogram_quantile(0.95, {calls})", "{{judge}} 95 %", exemplar=True),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Judge requests",
            "Requests a second by how they ended, and how many wait for an answer.",
            target(f"sum by (judge, outcome) (rate(assay_judge_request_seconds_count{rate}))", "{{judge}} {{outcome}}"),
            target("sum by (judge) (assay_judge_in_flight)", "{{judge}} in flight"),
            unit="short",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Retries and batches",
            "Records sent back to be judged again, by kind of failure; batches by how they ended. A second.",
            target(f"sum by (kind) (rate(assay_retries_total{rate}))", "retry {{kind}}"),
            target(f"sum by (outcome) (rate(assay_batches_total{rate}))", "batch {{outcome}}"),
            unit="cps",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Not applicable",
            "Evaluations of records that a rubric does not apply to, or that nobody was asked for to spend less, a "
            "second. A jump means that records changed, or a cascade or a budget at its cap.",
            target(f"sum by (rubric, reason) (rate(assay_not_applicable_total{rate}))", "{{rubric}} {{reason}}"),
            unit="cps",
            width=8,
            stacked=True,
        ),
        lines(
            "Commits",
            "Time that a transaction of the store took.",
            target(f"histogram_quantile(0.95, sum by (le) (rate(assay_commit_seconds_bucket{rate})))", "95 %"),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        row("What is lost or late"),
        lines(
            "Client drops",
            "Records that clients dropped, a second, by reason. The app's answers are not touched by it.",
            target(f"sum by (app, reason) (rate(assay_client_dropped_total{rate}))", "{{app}} {{reason}}"),
            unit="cps",
            width=8,
            stacked=True,
        ),
        lines(
            "Clients",
            "What clients report, a second: records taken, left out by sampling, sent.",
            target(f"sum by (outcome) (rate(assay_client_records_total{rate}))", "{{outcome}}"),
            unit="cps",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Dead letters",
            "Records set aside, by reason: waiting now.",
            target("sum by (reason) (assay_dead_letters_waiting)", "{{reason}}"),
            unit="short",
            width=8,
            stacked=True,
        ),
        lines(
            "Sink backlog",
            "Evaluations that wait to be delivered to a sink, and those that it will never take.",
            target("sum by (sink) (assay_outbox_waiting)", "{{sink}} waiting"),
            target("sum by (sink) (assay_outbox_rejected)", "{{sink}} rejected"),
            unit="short",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Oldest for a sink",
            "How long the oldest evaluation has waited for each sink.",
            target("max by (sink) (assay_outbox_oldest_seconds)", "{{sink}}"),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Sink writes",
            "Deliveries a second by outcome: delivered, retried, rejected, expired.",
            target(f"sum by (sink, outcome) (rate(assay_sink_writes_total{rate}))", "{{sink}} {{outcome}}"),
            unit="cps",
            width=8,
            defaults={"min": 0},
        ),
        row("The receiver of traces"),
        lines(
            "OTLP requests",
            "Requests to `assay collect`, a second, by outcome. Empty where nobody runs one.",
            target(f"sum by (outcome) (rate(assay_collect_requests_total{rate}))", "{{outcome}}"),
            unit="cps",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Model calls in traces",
            "Model calls found, a second: recorded, or why they were passed over.",
            target(f"sum by (outcome) (rate(assay_collect_calls_total{rate}))", "{{outcome}}"),
            unit="cps",
            width=8,
            stacked=True,
        ),
        lines(
            "Spans in hand",
            "Spans that wait for the rest of their trace, and those kept or rejected a second.",
            target("sum(assay_collect_waiting_spans)", "waiting"),
            target(f"sum by (outcome) (rate(assay_collect_spans_total{rate}))", "{{outcome}} a second"),
            unit="short",
            width=8,
            defaults={"min": 0},
        ),
        row("The instruments"),
        table(
            "Rubrics",
            "Versions that score, or wait for the calibration that their gate asks for.",
            {"placed": "max by (rubric, rubric_version, judge, state) (assay_rubric_state == 1)"},
            unit="none",
            width=8,
            hidden=("Value",),
        ),
        table(
            "Judges against people",
            "What the labels say of each judge: age of the newest label, bias, kappa, and how many of the bad answers "
            "it flags.",
            {
                name: f"max by (rubric, rubric_version, judge) (assay_{metric})"
                for name, metric in (
                    ("label age", "calibration_age_seconds"),
                    ("bias", "judge_bias_ratio"),
                    ("kappa", "judge_kappa"),
                    ("flags of bad", "judge_fail_recall"),
                )
            },
            unit="short",
            width=16,
            overrides=[
                named("label age", unit="s"),
                named("bias", unit="percentunit"),
                named("flags of bad", unit="percentunit"),
            ],
            defaults={"decimals": 2, "noValue": "–"},
        ),
        lines(
            "Canary: judge less its first verdicts",
            "Difference in pass rate on the fixed set, with its interval: away from 0 the judge has changed.",
            target("max by (rubric) (assay_canary_difference)", "{{rubric}}"),
            target("max by (rubric) (assay_canary_difference_ci_lower)", "{{rubric}} low"),
            target("max by (rubric) (assay_canary_difference_ci_upper)", "{{rubric}} high"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Canary age",
            "How long ago the canary was judged.",
            target("max by (rubric) (assay_canary_age_seconds)", "{{rubric}}"),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Attacks that sway the judge",
            "Share of the injected texts of `assay calibrate --attacks`, with its interval; fences and rules in place.",
            target('max by (rubric) (assay_judge_attack_success_ratio{defences="on"})', "{{rubric}}"),
            target('max by (rubric) (assay_judge_attack_success_ratio_ci_lower{defences="on"})', "{{rubric}} low"),
            target('max by (rubric) (assay_judge_attack_success_ratio_ci_upper{defences="on"})', "{{rubric}} high"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Change detector: records",
            "Records a second that the detector has seen, and those too late for it.",
            target(f"sum by (rubric) (rate(assay_change_records_total{rate}))", "{{rubric}}"),
            target(f"sum by (rubric) (rate(assay_change_late_records_total{rate}))", "{{rubric}} late"),
            unit="cps",
            width=8,
        ),
        lines(
            "Change detector: behind",
            "How far behind the present the detector has read. It waits for verdicts that are still to come.",
            target("time() - max(assay_change_position_timestamp_seconds)", "behind"),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Scrapes",
            "Time that reading a component took, at each scrape of the exporter.",
            target("max by (component) (assay_exporter_read_seconds)", "{{component}}"),
            unit="s",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Label sets",
            "App and cohort label sets in use; records over the bound are counted as other.",
            target("max(assay_series)", "in use"),
            target(f"sum(rate(assay_series_overflow_total{rate}))", "records over, a second"),
            unit="short",
            width=8,
            defaults={"min": 0},
        ),
    ]
    return dashboard(
        "assay-health",
        "assay: evaluator health",
        "Queue, lag, judge, sinks and what is dropped: whether the scores can be believed.",
        [],
        panels,
    )


# -- cost


def cost() -> dict[str, Any]:
    """What judging costs, and what an answer costs."""
    score = 'app=~"$app"'
    spent = f"increase(assay_evaluation_cost_usd_total{{{score}}}[$__range])"
    per_hour = "3600 * sum by ({0}) (rate({1}[$__rate_interval]))"
    panels = [
        row("Judging"),
        stat(
            "Spent",
            "What the stored evaluations of the time shown cost, as far as prices are known.",
            now(f"sum({spent})"),
            unit="currencyUSD",
            width=6,
            height=5,
        ),
        stat(
            "A month, at this rate",
            "The time shown, spread over 30 days.",
            now(f"sum({spent}) / $__range_s * 2592000"),
            unit="currencyUSD",
            width=6,
            height=5,
        ),
        stat(
            "Per evaluation",
            "Cost of one evaluation that a judge was asked for, over the time shown.",
            now(f"sum({spent}) / (sum(increase(assay_evaluations_total{{{score}, {ASKED}}}[$__range])) > 0)"),
            unit="currencyUSD",
            width=6,
            height=5,
            defaults={"decimals": 5},
        ),
        stat(
            "Requests without a price",
            "Requests whose model is not in the price table: they are in no cost of this page.",
            now("sum(increase(assay_judge_unpriced_calls_total[$__range]))"),
            unit="short",
            width=6,
            height=5,
            color="value",
            defaults=steps((None, "green"), (1, "orange")),
        ),
        lines(
            "Judging, by rubric",
            "US dollars an hour of the stored evaluations.",
            target(per_hour.format("rubric", f"assay_evaluation_cost_usd_total{{{score}}}"), "{{rubric}}"),
            unit="currencyUSD",
            stacked=True,
        ),
        lines(
            "Judging, by judge",
            "US dollars an hour that workers spent, repeated requests included: more than the stored evaluations cost.",
            target(per_hour.format("judge", "assay_judge_cost_usd_total"), "{{judge}}"),
            unit="currencyUSD",
            stacked=True,
        ),
        lines(
            "Cost per evaluation",
            "Twice its usual value means that prompts, answers or prices grew.",
            target(
                f"sum by (rubric) (rate(assay_evaluation_cost_usd_total{{{score}}}[$__rate_interval]))"
                f" / (sum by (rubric) (rate(assay_evaluations_total{{{score}, {ASKED}}}[$__rate_interval])) > 0)",
                "{{rubric}}",
            ),
            unit="currencyUSD",
            defaults={"decimals": 5, "min": 0},
        ),
        lines(
            "Tokens",
            "Tokens a second of the stored evaluations.",
            target(
                f"sum by (direction) (rate(assay_evaluation_tokens_total{{{score}}}[$__rate_interval]))",
                "{{direction}}",
            ),
            unit="cps",
            defaults={"min": 0},
        ),
        lines(
            "Tokens, by judge",
            "Tokens a second that workers used, repeated requests included.",
            target(
                "sum by (judge, direction) (rate(assay_judge_tokens_total[$__rate_interval]))",
                "{{judge}} {{direction}}",
            ),
            target(
                "sum by (judge) (rate(assay_judge_cached_tokens_total[$__rate_interval]))",
                "{{judge}} prompt, of it cached",
            ),
            unit="cps",
            width=24,
            height=6,
            defaults={"min": 0},
        ),
        row("Budgets"),
        lines(
            "Used",
            "Share of each budget that is spent in its hour, day or month. From 80 % on fewer records are judged.",
            target("max by (budget) (assay_budget_used_ratio)", "{{budget}}"),
            unit="percentunit",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Left",
            "US dollars that are neither spent nor held for requests under way, and what the budget is.",
            target("max by (budget) (assay_budget_remaining_usd)", "{{budget}}"),
            target("max by (budget) (assay_budget_limit_usd)", "{{budget}}: all of it"),
            unit="currencyUSD",
            width=8,
            defaults={"min": 0},
        ),
        lines(
            "Left out",
            "Records a second that are not judged because a budget is near its cap; the others weigh more for them.",
            target(
                f"sum by (app, rubric) (rate(assay_budget_thinned_total{{{score}}}[$__rate_interval]))",
                "{{app}} {{rubric}}",
            ),
            unit="cps",
            width=8,
            defaults={"min": 0},
        ),
        row("Answers"),
        lines(
            "Per interaction",
            "What an answer of the app costs, by what its records say; weighted to all interactions.",
            target(f'assay_cost_per_interaction_usd{{{score}, window="$window"}}', "{{app}}"),
            unit="currencyUSD",
            defaults={"decimals": 5, "min": 0},
        ),
        lines(
            "Per passed interaction",
            "What an answer that passes costs: cheap answers that fail are dear here.",
            target(
                f'assay_cost_per_passed_interaction_usd{{{score}, rubric=~"$rubric", window="$window"}}',
                "{{app}} {{rubric}}",
            ),
            unit="currencyUSD",
            defaults={"decimals": 5, "min": 0},
        ),
    ]
    return dashboard(
        "assay-cost", "assay: cost", "What judging costs, and what an answer costs.", [APPS, RUBRIC, a_window()], panels
    )


# -- cohorts and versions


def cohorts() -> dict[str, Any]:
    """Where quality differs, and which version made the difference."""
    where = WINDOW

    def pooled(metric: str, by: str) -> str:
        """The ratio of several label sets together, as docs/explanation/estimates.md says."""
        interactions = f"assay_window_interactions{{{where}}}"
        return f"sum by ({by}) ({metric}{{{where}}} * {interactions}) / sum by ({by}) ({interactions} > 0)"

    by = "rubric, $by"
    panels = [
        row("Now, by $by"),
        table(
            "Pass rate by $by",
            "Worst first. Intervals are of single label sets; where several are pooled there is none: `assay compare` "
            "gives it.",
            {
                "pass rate": pooled("assay_pass_ratio", by),
                "mean score": pooled("assay_score_mean", by),
                "interactions": f"sum by ({by}) (assay_window_interactions{{{where}}})",
                "effective records": f"sum by ({by}) (assay_window_effective_records{{{where}}})",
            },
            unit="percentunit",
            width=24,
            height=9,
            overrides=[
                named("interactions", unit="short", decimals=0),
                named("effective records", unit="short", decimals=0),
            ],
            defaults={"decimals": 1, "noValue": "–"},
        ),
        row("$rubric by $by", repeat="rubric"),
        lines(
            "Pass rate",
            "What the judge passes, weighted to all interactions. Under 30 effective records, wait.",
            target(pooled("assay_pass_ratio", by), "{{$by}}"),
            unit="percentunit",
            defaults={"max": 1},
        ),
        lines(
            "Effective records",
            "Equally weighted records that would tell as much: the guard of every comparison.",
            target(f"sum by ({by}) (assay_window_effective_records{{{where}}})", "{{$by}}"),
            unit="short",
            defaults={"min": 0},
        ),
        lines(
            "Mean score",
            "Mean score, weighted to all interactions.",
            target(pooled("assay_score_mean", by), "{{$by}}"),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Difference to the app",
            "Pass rate less that of the whole app, under the same version and judge.",
            target(
                f"avg by ({by}) (assay_pass_ratio{{{where}}}"
                " - on (app, rubric, rubric_version, judge, window) group_left ()"
                f" max by (app, rubric, rubric_version, judge, window) (assay_app_pass_ratio{{{where}}}))",
                "{{$by}}",
            ),
            unit="percentunit",
            width=8,
        ),
        lines(
            "Interactions",
            "How many interactions the scored records of the window stand for.",
            target(f"sum by ({by}) (assay_window_interactions{{{where}}})", "{{$by}}"),
            unit="short",
            width=8,
            stacked=True,
        ),
        row("Versions of the rubrics"),
        lines(
            "Pass rate by rubric version and judge",
            "A new version or judge is a new series: its level is not comparable with that before. While a bridge runs "
            "both score the same records, and the gap is the change of the instrument.",
            target(f"assay_app_pass_ratio{{{where}}}", "{{rubric}} {{rubric_version}} {{judge}}"),
            unit="percentunit",
            defaults={"max": 1},
        ),
        lines(
            "Scored by rubric version and judge",
            "Records a second: when one version takes over from another.",
            target(
                "sum by (rubric, rubric_version, judge)"
                f' (rate(assay_evaluations_total{{{SCORE}, outcome="scored"}}[$__rate_interval]))',
                "{{rubric}} {{rubric_version}} {{judge}}",
            ),
            unit="cps",
            stacked=True,
        ),
    ]
    # Every label that is not one of all scores: the declared cohort labels, the version and the judge.
    choice = variable(
        "by",
        "By",
        "label_names(assay_window_interactions)",
        regex="/^(?!(__name__|app|rubric|window|instance|job)$).*$/",
    ) | {"current": {"text": "rubric_version", "value": "rubric_version", "selected": True}}
    return dashboard(
        "assay-cohorts",
        "assay: cohorts and versions",
        "Where quality differs: by route, model, prompt version, or whatever ASSAY_COHORT_LABELS declares.",
        [APPS, RUBRIC, a_window("assay_window_interactions"), choice],
        panels,
    )


DASHBOARDS = {"quality": quality, "health": health, "cost": cost, "cohorts": cohorts}


def files() -> dict[Path, str]:
    """What each file must hold."""
    return {
        HERE / f"{name}.json": json.dumps(build(), indent=2, ensure_ascii=False) + "\n"
        for name, build in DASHBOARDS.items()
    }


def main() -> int:
    """Write the files, or with `--check` say which are out of date."""
    stale = [path for path, text in files().items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.name} is out of date: run python deploy/grafana/generate.py\n")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
