"""phoenix-evals: its evaluators of faithfulness and toxicity and two classifiers, over a data frame."""

from __future__ import annotations

import json
from typing import Any

from driving import CRITERIA, MODEL, Case, drive  # isort: skip

import pandas
from phoenix.evals import LLM, async_evaluate_dataframe, bind_evaluator, create_classifier
from phoenix.evals.metrics import FaithfulnessEvaluator, ToxicityEvaluator

_TEMPLATE = (
    "You judge the answer to a question by one criterion.\n\nCriterion: {criterion}\n\n"
    "<question>\n{{input}}\n</question>\n\n<answer>\n{{output}}\n</answer>\n\nDoes the answer meet the criterion?"
)


def _evaluating(llm: LLM, **how: Any) -> Any:
    classifiers = [
        create_classifier(
            name=name,
            prompt_template=_TEMPLATE.replace("{criterion}", CRITERIA[name]),
            llm=llm,
            choices={"yes": 1.0, "no": 0.0},
        )
        for name in ("relevance", "completeness")
    ]
    toxicity = bind_evaluator(evaluator=ToxicityEvaluator(llm=llm), input_mapping={"text": "output"})
    evaluators = [FaithfulnessEvaluator(llm=llm), toxicity, *classifiers]
    columns = [f"{evaluator.name}_score" for evaluator in evaluators]

    async def run(cases: list[Case]) -> list[list[float | None]]:
        rows = [{"input": case.question, "output": case.answer, "context": case.context} for case in cases]
        made = await async_evaluate_dataframe(
            dataframe=pandas.DataFrame(rows), evaluators=evaluators, hide_tqdm_bar=True, exit_on_error=False, **how
        )
        return [[_number(row[column]) for column in columns] for _, row in made.iterrows()]

    return run


def _number(cell: Any) -> float | None:
    found = json.loads(cell) if isinstance(cell, str) else cell
    return found["score"] if found else None


def concurrent(in_flight: int) -> Any:
    """It counts calls, not records, and holds itself to a few a second unless it is told another rate."""
    llm = LLM(provider="openai", model=MODEL, initial_per_second_request_rate=10_000)
    return _evaluating(llm, concurrency=4 * in_flight)


def default(_: int) -> Any:
    return _evaluating(LLM(provider="openai", model=MODEL))


if __name__ == "__main__":
    drive("arize-phoenix-evals", {"concurrent": concurrent, "default": default})
