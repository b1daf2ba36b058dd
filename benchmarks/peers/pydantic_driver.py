"""pydantic-evals: a data set with four LLMJudge evaluators, their model given by name, or made once and kept."""

from __future__ import annotations

from typing import Any

from driving import CRITERIA, DIMENSIONS, MODEL, Case, drive  # isort: skip

from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_evals import Case as Row
from pydantic_evals import Dataset
from pydantic_evals.evaluators import LLMJudge


def _judging(model: Any, in_flight: int) -> Any:
    judges = [
        LLMJudge(
            rubric=CRITERIA[name],
            include_input=True,
            model=model,
            assertion={"evaluation_name": name, "include_reason": True},
        )
        for name in DIMENSIONS
    ]

    async def run(cases: list[Case]) -> list[list[bool | None]]:
        answers = {case.question: case.answer for case in cases}
        rows = [
            Row(name=str(index), inputs={"question": case.question, "passages": case.passages})
            for index, case in enumerate(cases)
        ]

        async def task(inputs: dict[str, Any]) -> str:
            return answers[inputs["question"]]

        report = await Dataset(name="records", cases=rows, evaluators=judges).evaluate(
            task, max_concurrency=in_flight, progress=False
        )
        found = {case.name: case.assertions for case in report.cases}
        none: dict[str, Any] = {}
        made = [found.get(row.name, none) for row in rows]
        return [[one[name].value if name in one else None for name in DIMENSIONS] for one in made]

    return run


def by_name(in_flight: int) -> Any:
    return _judging(f"openai-chat:{MODEL}", in_flight)


def kept(in_flight: int) -> Any:
    return _judging(OpenAIChatModel(MODEL), in_flight)


if __name__ == "__main__":
    drive("pydantic-evals", {"by-name": by_name, "kept": kept})
