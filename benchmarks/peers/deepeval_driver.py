"""deepeval: faithfulness, answer relevancy, toxicity, a GEval of completeness; by `evaluate()` and by `a_measure`."""

from __future__ import annotations

import os
from typing import Any

from driving import CRITERIA, MODEL, Case, drive, each, gathered  # isort: skip

os.environ |= {"DEEPEVAL_NO_INSPECT_PROMPT": "1", "DEEPEVAL_DISABLE_DOTENV": "1", "CONFIDENT_OPEN_BROWSER": "0"}

from deepeval import evaluate
from deepeval.evaluate import AsyncConfig, CacheConfig, DisplayConfig
from deepeval.metrics import AnswerRelevancyMetric, FaithfulnessMetric, GEval, ToxicityMetric
from deepeval.models import OpenAIModel
from deepeval.test_case import LLMTestCase, SingleTurnParams


class _OneClient(OpenAIModel):
    """Its model makes an OpenAI client for every call; this one keeps the first."""

    _kept: Any = None

    def load_model(self, async_mode: bool = False) -> Any:
        if not async_mode:
            return super().load_model(async_mode)
        self._kept = self._kept or super().load_model(async_mode)
        return self._kept


def _metrics(model: OpenAIModel) -> list[Any]:
    return [
        FaithfulnessMetric(model=model),
        AnswerRelevancyMetric(model=model),
        ToxicityMetric(model=model),
        GEval(
            name="completeness",
            evaluation_steps=[CRITERIA["completeness"]],
            evaluation_params=[SingleTurnParams.INPUT, SingleTurnParams.ACTUAL_OUTPUT],
            model=model,
        ),
    ]


def _test(case: Case) -> LLMTestCase:
    return LLMTestCase(input=case.question, actual_output=case.answer, retrieval_context=case.passages)


def measured(in_flight: int) -> Any:
    """Without `evaluate()`, and with one OpenAI client: the most that can be had of it."""
    model = _OneClient(model=MODEL)

    async def score(case: Case) -> list[float | None]:
        metrics, test = _metrics(model), _test(case)
        return await each(
            *(metric.a_measure(test, _show_indicator=False) for metric in metrics), read=lambda score: score
        )

    return gathered(in_flight, score)


def _evaluating(concurrency: AsyncConfig) -> Any:
    metrics = _metrics(OpenAIModel(model=MODEL))

    def run(cases: list[Case]) -> list[list[float | None]]:
        made = evaluate(
            test_cases=[_test(case) for case in cases],
            metrics=metrics,
            async_config=concurrency,
            display_config=DisplayConfig(show_indicator=False, print_results=False, inspect_after_run=False),
            cache_config=CacheConfig(write_cache=False),
        )
        return [[one.score for one in result.metrics_data or ()] for result in made.test_results]

    return run


def default(_: int) -> Any:
    return _evaluating(AsyncConfig())


def evaluated(in_flight: int) -> Any:
    return _evaluating(AsyncConfig(max_concurrent=in_flight))


if __name__ == "__main__":
    drive("deepeval", {"measure": measured, "evaluate": evaluated, "evaluate-default": default})
