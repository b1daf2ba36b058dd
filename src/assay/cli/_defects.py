"""`assay defects`: what is wrong with answers that did not pass."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Annotated

import typer

from assay.cli._opened import open_store
from assay.cli._options import Apps, settings_of
from assay.cli._screen import Json, output, print_json, print_table
from assay.defects import MEANINGS, UNCLASSIFIED
from assay.errors import ConfigError
from assay.records import now
from assay.windows import parse_window

app = typer.Typer(help="What is wrong with answers that did not pass, one class each.", no_args_is_help=True)


@app.command("list")
def list_(
    since: Annotated[str, typer.Option(help="How far back, such as `24h` or `7d`.")] = "24h",
    apps: Apps = None,
    rubric: Annotated[str | None, typer.Option(help="Only the rubric of this name.")] = None,
    defect: Annotated[str | None, typer.Option(help="Only this class, such as `retrieval_miss`.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most records to print, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """Show how many answers had which defect, and the newest of them."""
    if defect is not None and defect not in MEANINGS:
        raise ConfigError(f"--defect {defect!r}: there are {', '.join(MEANINGS)}")
    end = now()
    try:
        start = end - timedelta(seconds=parse_window(since))
    except OverflowError:
        raise ConfigError(f"--since {since!r}: that is before all records: write 24h, 7d or 8w") from None
    store = open_store(settings_of(apps))
    mix = [
        count
        for count in store.defect_mix(start, end)
        if rubric in (None, count.rubric) and defect in (None, count.defect)
    ]
    found = store.defects(start, rubric=rubric, defect=defect, limit=limit)
    if as_json:
        print_json(
            {
                "counts": [dataclasses.asdict(count) for count in mix],
                "records": [dataclasses.asdict(finding) for finding in found],
            }
        )
        return
    if not found:
        output.print(f"No answer of the last {since} has a defect.", highlight=False)
        return
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for count in mix:
        n, weight = sums.get((count.rubric, count.defect), (0, 0.0))
        sums[count.rubric, count.defect] = n + count.n, weight + count.sum_w
    print_table(
        f"Last {since}",
        ("rubric", "defect", "scored>", "interactions>", "what it means"),
        (
            (rubric, defect, n, f"{weight:.0f}", MEANINGS.get(defect, ""))  # type: ignore[call-overload]
            for (rubric, defect), (n, weight) in sorted(sums.items(), key=lambda item: (item[0][0], -item[1][1]))
        ),
    )
    print_table(
        f"The newest {len(found)}",
        ("record", "when", "rubric", "defect", "by", "value>", "injection", "explanation"),
        (
            (
                finding.record_id,
                f"{finding.timestamp:%Y-%m-%d %H:%M}",
                finding.rubric,
                finding.defect,
                "person" if finding.by_person else finding.judge,
                f"{finding.value:.2f}",
                ", ".join(finding.injection_signs or ()),
                finding.explanation[:120],
            )
            for finding in found
        ),
    )


@app.command("set")
def set_(
    record: Annotated[str, typer.Argument(help="Record, trace or span id.")],
    defect: Annotated[str, typer.Argument(metavar="CLASS", help="The class, such as `selection`.")],
    rubric: Annotated[str, typer.Option(help="The rubric that the record did not pass.")],
    apps: Apps = None,
    as_json: Json = False,
) -> None:
    """Put a record that did not pass into another class: yours wins over the judge's, now and when it is judged again.

    Counters never go back: the record counts under the new class, and as moved under the old one.
    """
    if defect == UNCLASSIFIED:
        raise ConfigError(f"{UNCLASSIFIED} is what nobody has named: name a class, or leave the judge's")
    changed = open_store(settings_of(apps)).set_defect(record, rubric, defect)
    if as_json:
        print_json({"record": record, "rubric": rubric, "defect": defect, "changed": changed})
    else:
        output.print(f"{record}: {rubric}: {defect} ({changed} scores changed)", markup=False, highlight=False)
