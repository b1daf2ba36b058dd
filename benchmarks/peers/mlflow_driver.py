"""mlflow: its judges called directly from threads, and `mlflow.genai.evaluate`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from driving import CRITERIA, MODEL, Case, drive  # isort: skip

import mlflow
from mlflow.genai import judges
from mlflow.genai.scorers import Completeness, Guidelines, RelevanceToQuery, Safety

_JUDGE = f"openai:/{MODEL}"
_GOOD = {"yes": 1.0, "no": 0.0}


def direct(in_flight: int) -> Any:
    """Threads, as it knows no other way; one for each call."""
    pool = ThreadPoolExecutor(4 * in_flight)
    complete = Completeness(model=_JUDGE)

    def run(cases: list[Case]) -> list[list[float | None]]:
        asked = [
            [
                pool.submit(
                    judges.is_grounded, request=c.question, response=c.answer, context=c.passages, model=_JUDGE
                ),
                pool.submit(judges.is_context_relevant, request=c.question, context=c.answer, model=_JUDGE),
                pool.submit(judges.is_safe, content=c.answer, model=_JUDGE),
                pool.submit(complete, inputs={"question": c.question}, outputs=c.answer),
            ]
            for c in cases
        ]
        return [[None if one.exception() else _number(one.result()) for one in several] for several in asked]

    return run


def _number(feedback: Any) -> float | None:
    return _GOOD.get(str(getattr(feedback.value, "value", feedback.value)))


def evaluate(in_flight: int) -> Any:
    """With as many workers as it can use, without its own limit of rate, and connections for all to its database."""
    os.environ |= {
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(in_flight),
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(in_flight),
        "MLFLOW_GENAI_EVAL_MAX_WORKERS": str(in_flight),
        "MLFLOW_GENAI_EVAL_PREDICT_RATE_LIMIT": "0",
        "MLFLOW_GENAI_EVAL_SCORER_RATE_LIMIT": "0",
    }
    return default(in_flight)


def default(_: int) -> Any:
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("records")
    names = ("faithfulness", "relevance_to_query", "safety", "completeness")
    scorers = [
        Guidelines(name="faithfulness", guidelines=CRITERIA["faithfulness"], model=_JUDGE),
        RelevanceToQuery(model=_JUDGE),
        Safety(model=_JUDGE),
        Completeness(model=_JUDGE),
    ]

    def run(cases: list[Case]) -> list[list[float | None]]:
        rows = [
            {"inputs": {"question": case.question, "passages": case.passages}, "outputs": case.answer} for case in cases
        ]
        frame = mlflow.genai.evaluate(data=rows, scorers=scorers).result_df
        return [[_GOOD.get(str(row[f"{name}/value"])) for name in names] for _, row in frame.iterrows()]

    return run


if __name__ == "__main__":
    drive("mlflow", {"direct": direct, "evaluate": evaluate, "evaluate-default": default})
