"""Which records people should label, with probabilities that every estimate afterwards can be weighted by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assay.calibration._columns import FloatArray, units
from assay.sampling import sample_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """One record picked for people to label."""

    record_id: str
    #: with which it was picked, in (0, 1]; keep it with the label
    probability: float
    #: a second annotator should label it too, for the human ceiling
    twice: bool


def label_probabilities(
    predicted: npt.ArrayLike, budget: float, *, mix: float = 0.2, floor: float = 0.02
) -> FloatArray:
    """Probability of picking each of n records, shape (n,): where the judge is unsure more, nowhere never.

    clip(c·((1 - mix)·u/mean(u) + mix), floor, 1) with u = √(g(1 - g)) and c such that they sum to `budget`.

    Args:
        predicted: g, the share that people pass at each record's score, by a score map; plain scores do as well.
        budget: expected number of picks, above 0. When it is more than there are records, all are picked; when it is
            less than the floor gives, the floor is lowered to what the budget allows.
        mix: share of the probability that is the same for all.
        floor: least probability; what can never be picked can never be spoken for.
    """
    g = units(predicted, "predicted")
    if not budget > 0:
        raise ValueError(f"budget: {budget} is not above 0")
    if not 0.0 < mix <= 1.0 or not 0.0 <= floor <= 1.0:
        raise ValueError(f"mix: {mix} must be in (0, 1], floor: {floor} in [0, 1]")
    n = len(g)
    if budget >= n:
        return np.ones(n)
    doubt = np.sqrt(g * (1 - g))
    mean = float(doubt.mean())
    pull = (1 - mix) * doubt / mean + mix if mean > 0.0 else np.ones(n)
    floor = min(floor, budget / n)
    low, high = 0.0, n / float(pull.min())
    for _ in range(200):
        middle = (low + high) / 2
        if float(np.clip(middle * pull, floor, 1.0).sum()) < budget:
            low = middle
        else:
            high = middle
    return np.clip(high * pull, floor, 1.0)


def pick_for_humans(
    record_ids: Sequence[str],
    predicted: npt.ArrayLike,
    budget: float,
    *,
    mix: float = 0.2,
    floor: float = 0.02,
    twice: float = 0.1,
    salt: str = "",
) -> list[Pick]:
    """Pick records for people to label: each on its own, by a hash of its id, so that a repeat picks the same.

    Labels then weigh 1 / (probability of sampling x of judging x of picking).

    Args:
        record_ids: of the n records.
        predicted, budget, mix, floor: see `label_probabilities`.
        twice: share of the picks that two people should label.
        salt: another salt gives another pick of the same records, such as for the next day.

    Raises:
        ValueError: shapes differ, an id occurs twice, or a value is out of range.
    """
    if len(set(record_ids)) != len(record_ids):
        raise ValueError("record_ids: an id occurs twice")
    g = units(predicted, "predicted", n=len(record_ids))
    if not len(g):
        return []
    chance = label_probabilities(g, budget, mix=mix, floor=floor)
    return [
        Pick(
            record_id=record_id,
            probability=float(probability),
            twice=sample_unit(f"label twice\0{salt}\0{record_id}") < twice,
        )
        for record_id, probability in zip(record_ids, chance, strict=True)
        if sample_unit(f"label\0{salt}\0{record_id}") < probability
    ]
