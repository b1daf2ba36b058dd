"""How often attacks sway the judges that are in use, as series."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from assay.attacks import success_ratio, total
from assay.metrics._exposition import label

if TYPE_CHECKING:
    from collections.abc import Collection

    from assay.metrics._families import Families
    from assay.store import Store


def add_attacks(families: Families, store: Store, in_use: Collection[tuple[str, str]], now: float) -> None:
    """The latest run of attacks on each instrument of `in_use` (rubric hash, judge fingerprint); `now` epoch seconds.

    Where judges of one name share the labels, the run that was measured last.

    Raises:
        StoreError: the store is away.
    """
    runs = {
        tuple(map(label, (run.instrument.rubric, run.instrument.rubric_version, run.instrument.judge))): run
        for run in store.attack_runs()
        if (run.instrument.rubric_hash, run.instrument.judge_fingerprint) in in_use
    }
    for key, run in runs.items():
        # The clock that measured it may be ahead of ours.
        families.add("assay_judge_attack_age_seconds", key, max(0.0, now - run.measured_at.timestamp()))
        for side, by_family in run.counts.items():
            counts = total(by_family)
            for outcome, n in asdict(counts).items():
                families.add("assay_judge_attacks", (*key, side, outcome), n)
            if (share := success_ratio(counts)) is None:
                continue
            for end, value in (("", share.value), ("_ci_lower", share.lower), ("_ci_upper", share.upper)):
                families.add(f"assay_judge_attack_success_ratio{end}", (*key, side), value)
