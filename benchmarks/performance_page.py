"""Writes the tables and the plot of docs/performance.md from what `throughput.py --json` measured.

python benchmarks/performance_page.py             # after a measurement into docs/performance.json
python benchmarks/performance_page.py --check     # whether the page says what the file says
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE, PLOT = DOCS / "performance.json", DOCS / "performance.md", DOCS / "images" / "processes.svg"
PEERS_PLOT = DOCS / "images" / "peers.svg"
#: USD per million tokens, in and out: an inexpensive model's, to compare tokens that are priced differently.
PRICES_USD = (0.15, 0.60)
LABELS = {
    "raw": "floor: bare asyncio",
    "aiohttp": "floor: aiohttp",
    "openai": "floor: AsyncOpenAI over aiohttp",
    "sqlite": "assay, whole system, SQLite",
    "postgresql": "assay, whole system, PostgreSQL",
}


def throughput(rows: list[dict[str, Any]]) -> str:
    """Markdown of floors and whole systems, with ratios to two floors of the run."""
    base = next((row["records_per_second"] for row in rows if row["name"] == "raw"), None)
    client = next((row["cpu_ms_per_record"] for row in rows if row["name"] == "openai"), None)
    lines = [
        "| client | processes | records/s | of the floor | CPU ms/record | of OpenAI client | tokens in + out | MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio = "" if base is None else f"{row['records_per_second'] / base:.2f}"
        cpu = "" if client is None else f"{row['cpu_ms_per_record'] / client:.2f}"
        tokens = f"{row['prompt_tokens_per_record']:,.0f} + {row['completion_tokens_per_record']:,.0f}"
        lines.append(
            f"| {LABELS[row['name']]} | {row['processes']} | {row['records_per_second']:,.1f} | {ratio} "
            f"| {row['cpu_ms_per_record']:.2f} | {cpu} | {tokens} | {row['rss_mb']:,.0f} |"
        )
    return "\n".join(lines)


def processes(rows: list[dict[str, Any]]) -> str:
    """Markdown of worker processes, with the ratio to what one gives times their number."""
    one = next(row["records_per_second"] for row in rows if row["processes"] == 1)
    lines = ["| worker processes | records/s | of one's, times their number | CPU ms/record |", "|--:|--:|--:|--:|"]
    for row in rows:
        rate, number = row["records_per_second"], row["processes"]
        lines.append(f"| {number} | {rate:,.1f} | {rate / one / number:.2f} | {row['cpu_ms_per_record']:.2f} |")
    return "\n".join(lines)


def saturation(rows: list[dict[str, Any]]) -> str:
    """Markdown of a judge that answers at once: cores that each part took."""
    lines = [
        "| database | worker processes | records/s | cores: workers | Redis | database server |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        server = f"{row['postgresql_cores']:.2f}" if row["name"] == "postgresql" else "in the worker"
        lines.append(
            f"| {'PostgreSQL' if row['name'] == 'postgresql' else 'SQLite'} | {row['processes']} "
            f"| {row['records_per_second']:,.0f} | {row['worker_cores']:.2f} | {row['redis_cores']:.2f} | {server} |"
        )
    return "\n".join(lines)


def lag(rows: list[dict[str, Any]]) -> str:
    """Markdown of seconds from the enqueue to the gauge."""
    lines = ["| load, records/s | median s | worst s | probes |", "|--:|--:|--:|--:|"]
    for row in rows:
        load, number = row["records_per_second"], row["probes"]
        lines.append(f"| {load:,.0f} | {row['median_seconds']:.2f} | {row['worst_seconds']:.2f} | {number} |")
    return "\n".join(lines)


def peers(rows: list[dict[str, Any]]) -> str:
    """Markdown of libraries, assay and the floor, fastest first, with ratios to the floor and to assay of the run."""
    rate = {row["name"]: row["records_per_second"] for row in rows}
    lines = [
        "| client | in flight | records | records/s | of the floor | of assay | CPU ms/record | calls/record "
        "| tokens in + out | USD/1,000 | MB | scores missing |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: -row["records_per_second"]):
        ratios = [f"{row['records_per_second'] / rate[base]:.2f}" if base in rate else "" for base in ("raw", "sqlite")]
        tokens = (row["prompt_tokens_per_record"], row["completion_tokens_per_record"])
        usd = sum(count * price for count, price in zip(tokens, PRICES_USD, strict=True)) / 1000
        lines.append(
            f"| {_client(row)} | {row['in_flight']:.0f} | {row['records']} | {row['records_per_second']:,.1f} "
            f"| {ratios[0]} | {ratios[1]} | {row['cpu_ms_per_record']:,.1f} | {row['calls_per_record']:.1f} "
            f"| {tokens[0]:,.0f} + {tokens[1]:,.0f} | {usd:.2f} | {row['rss_mb']:,.0f} | {row['missing_scores']:.0f} |"
        )
    return "\n".join(lines)


def faults(rows: list[dict[str, Any]]) -> str:
    """Markdown of libraries and assay while some of the judge's answers are errors; fewest gaps first."""
    lines = [
        "| client | records | scores missing | of all | records/s | seconds until 99 % were scored | calls/record |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: (row["missing_scores"] / row["records"], -row["records_per_second"])):
        share = row["missing_scores"] / (4 * row["records"])
        most = f"{row['most_seconds']:.1f}" if "most_seconds" in row else ""
        lines.append(
            f"| {_client(row)} | {row['records']} | {row['missing_scores']:.0f} | {100 * share:.1f} % "
            f"| {row['records_per_second']:,.1f} | {most} | {row['calls_per_record']:.1f} |"
        )
    return "\n".join(lines)


def _client(row: dict[str, Any]) -> str:
    return LABELS.get(row["name"]) or f"{row['label']} ({row['version']})"


def peers_plot(rows: list[dict[str, Any]]) -> str:
    """SVG: a bar of records/s for each client, fastest first."""
    given = sorted(rows, key=lambda row: -row["records_per_second"])
    most, height = given[0]["records_per_second"], 24 * len(given) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" font-size="12">',
        "<title>Records a second of each client, the same records and judge</title>",
        f'<rect width="760" height="{height}" fill="white"/>',
    ]
    for index, row in enumerate(given):
        top, width = 16 + 24 * index, 360 * row["records_per_second"] / most
        colour = {"raw": "#999", "sqlite": "#1f5fa8"}.get(row["name"], "#c98b3c")
        parts.append(f'<text x="330" y="{top + 13}" text-anchor="end">{html.escape(_client(row))}</text>')
        parts.append(f'<rect x="340" y="{top}" width="{width:.1f}" height="17" fill="{colour}"/>')
        parts.append(f'<text x="{346 + width:.1f}" y="{top + 13}">{row["records_per_second"]:,.1f}</text>')
    parts.append(f'<text x="340" y="{height - 8}" fill="#666">records/s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _not_driven(result: dict[str, Any]) -> str:
    lines = [f"- not driven: {one['name']}: {one['reason']}" for one in result.get("not_driven", ())]
    return "\n\n" + "\n".join(lines) if lines else ""


def measured(result: dict[str, Any], rounds: int) -> str:
    """When and on what, in one line."""
    given = result["conditions"]
    versions = ", ".join(f"{name} {number}" for name, number in given["versions"].items())
    return (
        f"{given['date']}, Python {given['python']}, {given['cores']} cores (load average {_load(given)}), "
        f"judge {given['latency_seconds']:g} s, {given['in_flight']} calls in flight a process, "
        f"{'median of ' + str(rounds) + ' rounds' if rounds > 1 else 'one round'}; {versions}."
    )


def _load(given: dict[str, Any]) -> str:
    if "most_load" in given:
        return f"{given['least_load']} to {given['most_load']}"
    return str(given["load_average"])


def plot(rows: list[dict[str, Any]]) -> str:
    """SVG: records/s against processes, beside the line of one's rate times their number."""
    points = sorted((row["processes"], row["records_per_second"]) for row in rows)
    one = next(rate for number, rate in points if number == 1)
    most_x, most_y = points[-1][0], max(one * points[-1][0], *(rate for _, rate in points)) * 1.05

    def at(x: float, y: float) -> str:
        return f"{60 + 400 * x / most_x:.1f},{260 - 230 * y / most_y:.1f}"

    line = " ".join(at(*point) for point in points)
    ideal = f"{at(0, 0)} {at(most_x, one * most_x)}"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 500 310" font-family="sans-serif" font-size="12">',
        "<title>Records a second against worker processes</title>",
        '<rect width="500" height="310" fill="white"/>',
        '<path d="M60,30 V260 H460" fill="none" stroke="#888"/>',
        f'<polyline points="{ideal}" fill="none" stroke="#999" stroke-dasharray="4 4"/>',
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>',
    ]
    for number, rate in points:
        x, y = at(number, rate).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#1f5fa8"/>')
        parts.append(f'<text x="{x}" y="{float(y) - 10:.1f}" text-anchor="middle">{rate:.0f}</text>')
        parts.append(f'<text x="{x}" y="277" text-anchor="middle">{number}</text>')
    parts.append('<text x="260" y="298" text-anchor="middle">worker processes</text>')
    parts.append('<text x="18" y="145" text-anchor="middle" transform="rotate(-90 18 145)">records/s</text>')
    parts.append('<text x="70" y="42" fill="#666">dashed: the rate of one, times their number</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


TABLES = {
    "throughput": throughput,
    "processes": processes,
    "saturation": saturation,
    "lag": lag,
    "peers": peers,
    "faults": faults,
}


def written(page: str, results: dict[str, Any]) -> str:
    """The page with every table that was measured between its markers."""
    for name, table in TABLES.items():
        if name in results:
            rows = results[name]["rows"]
            made = f"{table(rows)}\n\n{measured(results[name], rows[0].get('rounds', 1))}{_not_driven(results[name])}"
            begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
            page = re.sub(f"({begin}).*?({end})", lambda m, made=made: f"{m[1]}\n{made}\n{m[2]}", page, flags=re.DOTALL)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    made = {PAGE: written(PAGE.read_text(encoding="utf-8"), results)}
    if "processes" in results:
        made[PLOT] = plot(results["processes"]["rows"])
    if "peers" in results:
        made[PEERS_PLOT] = peers_plot(results["peers"]["rows"])
    if given.check:
        found = {path: path.read_text(encoding="utf-8") if path.exists() else "" for path in made}
        stale = [path.name for path, text in made.items() if found[path] != text]
        if stale:
            print(f"not what docs/performance.json says: {', '.join(stale)}: run benchmarks/performance_page.py")
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
