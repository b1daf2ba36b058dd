"""Signals: what a record shows of itself without a judge, and what many records' signals say of a window.

A signal is yes or no (counted as a share), a word of a bounded set (a share for each word) or a number (a mean). One
that a record says nothing of is left out of it: unknown is never no, and never 0. Whatever the record, this neither
raises nor takes long, and each name and word is one of those listed here.

Pure, no I/O, standard library only. docs/howto/signals.md says what each is good for.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from assay._text import asked, declines, knows_nothing, stems
from assay.faults import missing_fields
from assay.languages import LANGUAGES, language_of
from assay.sampling import sample_unit
from assay.windows import Estimate, Sums, pass_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from assay.injection import Sign
    from assay.languages import Language
    from assay.records import Record

#: What a record shows, by name: yes or no, a word, or a number.
Signals = Mapping[str, bool | str | float]

#: Signals of yes or no, and what yes means.
YES_NO: Mapping[str, str] = {
    "refusal": "the output opens by declining",
    "no_answer": "the output opens by saying that it does not know",
    "empty_output": "there is no output, and no tool call in its place",
    "tool_failure": "a tool call failed; of the records with tool calls",
    "schema_pass": "the output is JSON with the required fields; of the records that require some",
    "retrieved": "passages were retrieved",
    "language_mismatch": "input and output are in two languages; of those whose languages could be told",
    "injection_suspected": "a text in it speaks to its judge, or hides something, as prompt injections do",
    "feedback": "the user said something of the answer",
    "thumbs_up": "thumb up; of the thumbs given",
}

#: Signals of one word, and their words.
WORDS: Mapping[str, tuple[str, ...]] = {
    "finish": ("stop", "length", "content_filter", "tool_call", "error", "other"),
    "input_language": LANGUAGES,
    "output_language": LANGUAGES,
}
#: Published even where none of a window has it: what is watched for rising must be seen to be 0.
ALWAYS = {"finish": ("length", "content_filter", "error")}

#: Signals that are numbers, and their units.
NUMBERS: Mapping[str, str] = {
    "output_length": "characters of the output",
    "retrieval_score": "mean score of a record's passages, in the retriever's own units",
    "retrieval_best_score": "best score of a record's passages, in the retriever's own units",
    "rating": "rating that the user gave, in the app's own units",
    "cost_usd": "what the interaction cost the app, in US dollars",
}

#: Other words for the same, of the model APIs in use.
_FINISHES = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
    "tool_call": "tool_call",
    "tool_calls": "tool_call",
    "tool_use": "tool_call",
    "function_call": "tool_call",
    "error": "error",
}

#: Beyond it a number is not believed: the squares of what is left can be added up for ever.
_MOST = 1e9

#: What of a record's input is compared with a reference week.
Feature = str
FEATURES: tuple[Feature, ...] = ("length", "language", "topic", "retrieval_score")

#: Bins of words. More would hold too few records each, fewer would mix too many topics.
TOPIC_BINS = 64
#: Lengths above 2^20 characters share the last bin; two bins to a doubling.
_LENGTH_BINS = 40
_SEEN_CHARACTERS = 1_000
#: Ends of the bins of scores: fine where cosines are, coarse elsewhere.
_SCORE_ENDS = (
    *(-10.0, -5.0, -2.0, -1.0, -0.5, 0.0),
    *(step / 20 for step in range(1, 21)),
    *(2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)


def signals_of(record: Record) -> Signals:
    """What the record shows of itself. Never raises, whatever stands in the record."""
    return _signals(record, _Read(record))


def shown_by(record: Record) -> tuple[Signals, Mapping[Feature, int], frozenset[Sign]]:
    """`signals_of` and `inputs_of`, and the signs of an injection, in less time than all three."""
    seen = _Read(record)
    return _signals(record, seen), _inputs(record, seen), seen.signs


class _Read:
    """What both look at."""

    __slots__ = ("asked", "language", "scores", "signs")

    def __init__(self, record: Record) -> None:
        # What only adds signals up, as most commands do, need not wait for its patterns to be compiled.
        from assay.injection import signs_of

        self.asked = asked(record)
        self.language = language_of(self.asked)
        self.scores = _scores(record)
        self.signs = signs_of(record)


def _signals(record: Record, seen: _Read) -> Signals:
    shown: dict[str, bool | str | float] = {
        "injection_suspected": bool(seen.signs),
        "retrieved": bool(record.contexts),
        "feedback": record.feedback is not None,
        "output_length": float(len(record.output)),
    }
    finish = None
    if record.finish_reason:
        finish = shown["finish"] = _FINISHES.get(record.finish_reason.strip().lower(), "other")
    if record.output.strip():
        shown["refusal"] = declines(record.output)
        shown["no_answer"] = knows_nothing(record.output)
        shown["empty_output"] = False
    elif finish != "tool_call":
        shown["empty_output"] = True
    if record.tool_events:
        shown["tool_failure"] = any(event.error is not None for event in record.tool_events)
    if record.required_fields:
        shown["schema_pass"] = not missing_fields(record)
    _add_languages(shown, seen.language, language_of(record.output))
    if seen.scores:
        shown["retrieval_score"] = math.fsum(seen.scores) / len(seen.scores)
        shown["retrieval_best_score"] = max(seen.scores)
    if record.feedback is not None:
        if record.feedback.thumb is not None:
            shown["thumbs_up"] = record.feedback.thumb == "up"
        if (rating := _believable(record.feedback.rating)) is not None:
            shown["rating"] = rating
    if (cost := cost_of(record)) is not None:
        shown["cost_usd"] = cost
    return shown


def cost_of(record: Record) -> float | None:
    """What the interaction cost the app, in US dollars; None where that is unknown or cannot be."""
    cost = _believable(record.usage.cost_usd)
    return cost if cost is not None and cost >= 0 else None


def inputs_of(record: Record) -> Mapping[Feature, int]:
    """The bin of the record in each feature of its input; a feature that it has nothing of is left out.

    Each record is in one bin of a feature, so that the bins of many records are counts of independent draws, which the
    tests take. For the topic that is the bin of one of its words, chosen by the record's id.
    """
    return _inputs(record, _Read(record))


def _inputs(record: Record, seen: _Read) -> Mapping[Feature, int]:
    bins = {
        "length": min(_LENGTH_BINS, int(2 * math.log2(len(seen.asked) + 1))),
        # 0: could not be told, which is a part of the mix too.
        "language": 0 if seen.language is None else 1 + LANGUAGES.index(seen.language),
    }
    said = stems(seen.asked[:_SEEN_CHARACTERS])
    if said:
        chosen = said[int(sample_unit(f"topic\0{record.record_id}") * len(said))]
        bins["topic"] = zlib.crc32(chosen.encode(errors="replace")) % TOPIC_BINS
    if seen.scores:
        bins["retrieval_score"] = bisect_right(_SCORE_ENDS, max(seen.scores))
    return bins


def _add_languages(shown: dict[str, bool | str | float], of_input: Language | None, of_output: Language | None) -> None:
    if of_input is not None:
        shown["input_language"] = of_input
    if of_output is not None:
        shown["output_language"] = of_output
    # Code, lists and two others are no languages to compare.
    if of_input is not None and of_output is not None and "other" not in {of_input, of_output}:
        shown["language_mismatch"] = of_input != of_output


def _scores(record: Record) -> list[float]:
    return [score for context in record.contexts if (score := _believable(context.score)) is not None]


def _believable(value: float | None) -> float | None:
    # A comparison also refuses NaN.
    return float(value) if value is not None and -_MOST <= value <= _MOST else None


# -- what many of them say


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSums:
    """Sums over records with weight w >= 1 and number x; of yes or no x is 1 or 0. They add up with `+`."""

    n: int = 0
    #: how many have an x that is not 0
    n_x: int = 0
    sum_w: float = 0.0
    sum_w2: float = 0.0
    sum_wx: float = 0.0
    sum_wx2: float = 0.0
    sum_w2x: float = 0.0
    sum_w2x2: float = 0.0

    @classmethod
    def of(cls, *, weight: float, x: float) -> Self:
        """The sums of one record."""
        return cls(**dict(zip(SIGNAL_SUMS, signal_terms(weight, x), strict=True)))  # type: ignore[arg-type]

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in SIGNAL_SUMS})


#: Names of the sums, in order: attributes of `SignalSums` and columns of the rollups.
SIGNAL_SUMS: tuple[str, ...] = tuple(field.name for field in fields(SignalSums))


def signal_terms(weight: float, x: float) -> tuple[float, ...]:
    """What one record adds to each of `SIGNAL_SUMS`, in that order."""
    square, wx = weight * weight, weight * x
    return 1, int(x != 0), weight, square, wx, wx * x, square * x, square * x * x


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSums:
    """Sums over records that a rubric scored and whose cost is known. They add up with `+`.

    Weight w, cost c in US dollars, p = 1 if it passed.
    """

    n: int = 0
    passes: int = 0
    sum_w: float = 0.0
    sum_w2: float = 0.0
    sum_wc: float = 0.0
    sum_w2c2: float = 0.0
    sum_wp: float = 0.0
    sum_w2p: float = 0.0
    sum_w2cp: float = 0.0

    @classmethod
    def of(cls, *, weight: float, cost: float, passed: bool) -> Self:
        """The sums of one record; `cost` in US dollars."""
        terms = cost_terms(weight, cost, passed=passed)
        return cls(**dict(zip(COST_SUMS, terms, strict=True)))  # type: ignore[arg-type]

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in COST_SUMS})


#: Names of the sums, in order: attributes of `CostSums` and columns of the rollups.
COST_SUMS: tuple[str, ...] = tuple(field.name for field in fields(CostSums))


def cost_terms(weight: float, cost: float, *, passed: bool) -> tuple[float, ...]:
    """What one record adds to each of `COST_SUMS`, in that order; `cost` in US dollars."""
    square, p = weight * weight, float(passed)
    costs = weight * cost, square * cost * cost
    return 1, int(passed), weight, square, *costs, weight * p, square * p, square * cost * p


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A weighted mean, or a ratio of two, with its 95 % interval where there are enough records for one."""

    value: float
    #: None: too few records say how far they spread
    lower: float | None
    upper: float | None
    n: int
    #: equally weighted records that would tell as much, at most n
    n_effective: float


def shares(sums: Mapping[tuple[str, str], SignalSums]) -> dict[str, Estimate]:
    """Estimated share of all interactions for each signal of yes or no and each word, by the published name.

    `sums` are by signal and word ("" for yes or no). The name of a word's share is `signal_word`. Hájek mean and
    Wilson's interval on the effective number, see `assay.windows.pass_ratio`. What no record tells has no share.
    """
    found: dict[str, Estimate] = {}
    for signal in YES_NO:
        if (known := sums.get((signal, ""))) is not None:
            _put(found, signal, known, known)
    for signal, words in WORDS.items():
        seen = {word: sums[signal, word] for word in words if (signal, word) in sums}
        whole = _total(seen.values())
        for word in words:
            if word in seen or word in ALWAYS.get(signal, ()):
                _put(found, f"{signal}_{word}", whole, seen.get(word, SignalSums()))
    return found


def means(sums: Mapping[tuple[str, str], SignalSums]) -> dict[str, Average]:
    """Estimated mean over all interactions for each signal that is a number, see `mean_of`."""
    found = ((signal, mean_of(sums[signal, ""])) for signal in NUMBERS if (signal, "") in sums)
    return {signal: average for signal, average in found if average is not None}


def mean_of(sums: SignalSums) -> Average | None:
    """Hájek mean Σwx / Σw with Student's interval on the effective number; None when there are no records.

    The variance is the linearised one, Σ w²(x - mean)² / (Σw)² · n/(n - 1), but no less than the weights allow: few
    heavy records all but fix the mean and so hide their own spread (docs/explanation/estimates.md). Costs and lengths
    are skewed: with few records the interval holds the truth less often than it says.
    """
    if sums.n == 0:
        return None
    mean = sums.sum_wx / sums.sum_w
    squares = sums.sum_w2x2 - 2 * mean * sums.sum_w2x + mean * mean * sums.sum_w2
    spread = sums.sum_wx2 / sums.sum_w - mean * mean
    kish = _kish(sums.n, sums.sum_w, sums.sum_w2)
    n_effective = kish
    if sums.n > 1 and squares > _ROUNDING * sums.sum_w2x2 and spread > _ROUNDING * sums.sum_wx2 / sums.sum_w:
        variance = squares / (sums.sum_w * sums.sum_w) * sums.n / (sums.n - 1)
        # With equal weights this is n.
        unbiased = spread * sums.n / (sums.n - 1)
        n_effective = min(float(sums.n), kish * max(1.0, kish / _TRUSTED), unbiased / variance)
        variance = unbiased / n_effective
    else:
        variance = 0.0
    return _average(mean, variance, sums.n, n_effective, kish, enough=sums.n)


def cost_per_pass(sums: CostSums) -> Average | None:
    """Cost of all interactions for each one that passed, Σwc / Σwp, in US dollars; None when none passed.

    Ratio of two weighted sums with its linearised variance Σ w²(c - ratio·p)² / (Σwp)² · n/(n - 1) (Cochran, Sampling
    Techniques, 6.4). With fewer than 5 passes there is no interval.
    """
    if sums.passes == 0:
        return None
    ratio = sums.sum_wc / sums.sum_wp
    squares = max(0.0, sums.sum_w2c2 - 2 * ratio * sums.sum_w2cp + ratio * ratio * sums.sum_w2p)
    variance = squares / (sums.sum_wp * sums.sum_wp) * sums.n / max(1, sums.n - 1)
    kish = _kish(sums.n, sums.sum_w, sums.sum_w2)
    return _average(ratio, variance, sums.n, kish, kish, enough=sums.passes)


#: As in `assay.windows`: with fewer records' worth of weight, the spread seen is not trusted.
_TRUSTED = 30.0
#: Relative spread below which doubles cannot tell it from none.
_ROUNDING = 1e-12
#: With fewer records an interval of a mean means nothing.
_LEAST = 5
_Z = 1.959963984540054


def _average(value: float, variance: float, n: int, n_effective: float, kish: float, *, enough: int) -> Average:
    if enough < _LEAST or kish < _LEAST:
        return Average(value=value, lower=None, upper=None, n=n, n_effective=n_effective)
    half = _t_quantile(kish - 1) * math.sqrt(variance)
    return Average(value=value, lower=value - half, upper=value + half, n=n, n_effective=n_effective)


def _t_quantile(df: float) -> float:
    """97.5 % quantile of Student's t, df >= 4, to 0.3 %: Abramowitz and Stegun 26.7.5."""
    z = _Z
    return z + (
        (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )


def _kish(n: int, sum_w: float, sum_w2: float) -> float:
    return max(1.0, min(float(n), sum_w * sum_w / sum_w2))


def _total(parts: Iterable[SignalSums]) -> SignalSums:
    whole = SignalSums()
    for part in parts:
        whole += part
    return whole


def _put(found: dict[str, Estimate], name: str, whole: SignalSums, having: SignalSums) -> None:
    estimate = pass_ratio(
        Sums(
            n=whole.n,
            sum_w=whole.sum_w,
            sum_w2=whole.sum_w2,
            passes=having.n_x,
            sum_wp=having.sum_wx,
            sum_w2p=having.sum_w2x,
        )
    )
    if estimate is not None:
        found[name] = estimate
