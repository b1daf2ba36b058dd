"""`assay enqueue` and `assay judge`: records from files, and one record now."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal, assert_never

import typer
from rich.markup import escape

from assay import wiring
from assay.cli._options import chosen_rubrics, pairs
from assay.cli._screen import Bar, Json, errors, output, print_json, print_table
from assay.codec import decode_record
from assay.enqueue import enqueue
from assay.errors import ConfigError, RecordError
from assay.files import create_private
from assay.queue import MAX_RECORD_BYTES
from assay.records import Evaluation, Failure, NotApplicable, Record, Score, Usage
from assay.rows import read_rows
from assay.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from assay.rubrics import Rubric
    from assay.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("enqueue")(enqueue_file)
    app.command("judge")(judge_record)


def enqueue_file(
    file: Annotated[
        str, typer.Argument(help="JSON Lines or CSV file, or `-` for standard input; a pipe is waited for.")
    ],
    form: Annotated[
        Literal["auto", "jsonl", "csv"], typer.Option("--format", help="`auto` goes by the file's name.")
    ] = "auto",
    rename: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="COLUMN=FIELD", help="Column that holds a record field; repeatable."),
    ] = None,
    unknown: Annotated[
        Literal["refuse", "metadata", "drop"], typer.Option(help="What to do with columns that are no record field.")
    ] = "refuse",
    app_name: Annotated[str | None, typer.Option("--app", help="The app, for rows that name none.")] = None,
    rejected: Annotated[
        Path | None, typer.Option(help="Where bad rows are kept. Default: FILE.rejected.jsonl.", dir_okay=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only check the rows.")] = False,
    as_json: Json = False,
) -> None:
    """Enqueue records from a file. Bad rows are reported by line and kept; exit code 2 if there was one.

    The same file enqueued twice is scored once.
    """
    settings = load_settings()
    mapping = pairs("--map", rename) or {}
    kept = rejected or Path(
        "stdin.rejected.jsonl" if file == "-" or file.startswith("/dev/") else f"{file}.rejected.jsonl"
    )
    chosen: Literal["jsonl", "csv"] = form if form != "auto" else ("csv" if file.lower().endswith(".csv") else "jsonl")
    bad: list[tuple[int, str]] = []
    with ExitStack() as stack:
        source = _open(file, stack)
        total = Path(file).stat().st_size if file != "-" and Path(file).is_file() else None
        bar = stack.enter_context(Bar("enqueuing", total, unit="bytes"))

        def records() -> Iterator[Record]:
            keep: IO[str] | None = None
            rows = read_rows(
                source,
                form=chosen,
                rename=mapping,
                unknown=unknown,
                defaults={"app": app_name} if app_name else None,
            )
            for row in rows:
                bar.advance(len(row.raw.encode(errors="replace")) + 1)
                if row.record is not None:
                    yield row.record
                    continue
                bad.append((row.line, str(row.error)))
                if len(bad) <= 20 and not as_json:
                    errors.print(escape(f"{file}:{row.line}: {row.error}"), soft_wrap=True, highlight=False)
                keep = keep or _create(kept, stack)
                keep.write(json.dumps({"line": row.line, "error": row.error, "row": row.raw}) + "\n")

        good = sum(1 for _ in records()) if dry_run else enqueue(records(), wiring.open_queue(settings))
    if not good and not bad:
        # An export that came to nothing must not look fine.
        raise ConfigError(f"{file}: has no record")
    if as_json:
        print_json({"enqueued": good, "rejected": [{"line": line, "error": error} for line, error in bad]})
    else:
        output.print(f"{good} records {'are right' if dry_run else 'enqueued'}, {len(bad)} rejected.")
        if bad:
            errors.print(escape(f"The rejected rows are in {kept}: mend them and enqueue them again."), soft_wrap=True)
    if bad:
        raise typer.Exit(2)


def _create(path: Path, stack: ExitStack) -> IO[str]:
    try:
        return stack.enter_context(create_private(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}: bad rows cannot be kept there; name another file with --rejected"
        ) from None


def _open(file: str, stack: ExitStack) -> IO[bytes]:
    if file == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(file).open("rb"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None


def judge_record(
    file: Annotated[str, typer.Argument(help="File with one record as JSON, or `-` for standard input.")],
    rubric: Annotated[list[str] | None, typer.Option(help="Only these rubrics (names or files); repeatable.")] = None,
    judge: Annotated[Literal["openai", "lexical", "rules"] | None, typer.Option(help="Judge to use.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask.")] = None,
    show_prompt: Annotated[bool, typer.Option(help="Print the prompt too.")] = False,
    as_json: Json = False,
) -> None:
    """Score one record now, without queue or database: verdicts, explanations, tokens and cost.

    Missing `record_id` and `timestamp` are filled in; contexts may be plain texts.
    """
    settings = load_settings(judge=judge, judge_model=model)
    rubrics = chosen_rubrics(settings, rubric or ())
    with ExitStack() as stack:
        try:
            raw = _open(file, stack).read(MAX_RECORD_BYTES + 1)
            if len(raw) > MAX_RECORD_BYTES:
                raise RecordError(f"{file}: the record has more than {MAX_RECORD_BYTES:,} bytes", reason="too_large")
            data = json.loads(raw)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{file}: not JSON: {error}") from None
    record = _one_record(data, file)
    evaluations = asyncio.run(_judge(settings, record, rubrics))
    messages: Sequence[Mapping[str, str]] = ()
    if show_prompt:
        from assay.judges import preview

        messages = preview(rubrics, record)[0]
    if as_json:
        found: object = [_as_json(evaluation) for evaluation in evaluations]
        print_json({"evaluations": found, "prompt": messages} if show_prompt else found)
    else:
        _print_verdicts(evaluations)
        for message in messages:
            output.rule(message["role"])
            output.print(message["content"], markup=False, highlight=False)
    if any(isinstance(evaluation.outcome, Failure) for evaluation in evaluations):
        raise typer.Exit(1)


def _one_record(data: object, file: str) -> Record:
    if not isinstance(data, dict):
        raise RecordError(f"{file}: a JSON object is wanted, not {type(data).__name__}")
    line = json.dumps(data).encode()
    row = next(read_rows([line], form="jsonl"))
    if row.record is None:
        raise RecordError(f"{file}: {row.error}")
    return decode_record(row.record.to_json())


async def _judge(settings: Settings, record: Record, rubrics: Sequence[Rubric]) -> list[Evaluation]:
    from assay.pipeline import evaluate

    judges = wiring.build_judges(settings, rubrics)
    try:
        return await evaluate(record, rubrics, judges)
    finally:
        await judges.aclose()


def _as_json(evaluation: Evaluation) -> dict[str, object]:
    outcome = evaluation.outcome
    common: dict[str, object] = {
        "rubric": evaluation.rubric,
        "rubric_version": evaluation.rubric_version,
        "judge": evaluation.judge,
        "latency_seconds": outcome.latency_seconds,
        "prompt_tokens": outcome.usage.prompt_tokens,
        "completion_tokens": outcome.usage.completion_tokens,
        "cached_prompt_tokens": outcome.usage.cached_prompt_tokens,
        "cost_usd": outcome.usage.cost_usd,
    }
    match outcome:
        case Score():
            return common | {
                "outcome": "scored",
                "value": outcome.value,
                "passed": outcome.passed,
                "raw": outcome.raw,
                "label": outcome.label,
                "defect": outcome.defect,
                "explanation": outcome.explanation,
                "details": dict(outcome.details),
            }
        case Failure():
            return common | {"outcome": "failed", "kind": outcome.kind, "message": outcome.message}
        case NotApplicable():
            return common | {"outcome": "not_applicable", "reason": outcome.reason}


def _print_verdicts(evaluations: Sequence[Evaluation]) -> None:
    rows = []
    total = Usage()
    for evaluation in evaluations:
        outcome, defect = evaluation.outcome, ""
        total += outcome.usage
        match outcome:
            case Score():
                verdict, value, why = "pass" if outcome.passed else "FAIL", f"{outcome.value:.2f}", outcome.explanation
                defect = outcome.defect or ""
            case Failure():
                verdict, value, why = "failed", "–", f"{outcome.kind}: {outcome.message}"
            case NotApplicable():
                verdict, value, why = "not applicable", "–", outcome.reason
            case _:
                assert_never(outcome)
        rows.append((evaluation.rubric, evaluation.rubric_version, evaluation.judge, verdict, value, defect, why))
    print_table("Verdicts", ("rubric", "version", "judge", "verdict", "value>", "defect", "explanation"), rows)
    if total.prompt_tokens is not None:
        cost = "unknown (no price for the model)" if total.cost_usd is None else f"{total.cost_usd:.6f} USD"
        cached = f" ({total.cached_prompt_tokens} cached)" if total.cached_prompt_tokens else ""
        output.print(f"{total.prompt_tokens} prompt{cached} + {total.completion_tokens} completion tokens, cost {cost}")
