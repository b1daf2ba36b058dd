"""Scores that did not pass, by what was wrong with the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.metrics._exposition import label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assay.metrics._families import Families
    from assay.store import Store


def add_defects(families: Families, store: Store, cohort_labels: Sequence[str]) -> None:
    """Everything ever counted, and of it what a person has put into another class since.

    Raises:
        StoreError: the store is away.
    """
    for count in store.defect_totals():
        cohort = (count.cohort.get(name, "") for name in cohort_labels)
        values = (count.app, count.rubric, count.rubric_version, count.judge, *cohort, count.defect)
        key = tuple(map(label, values))
        families.add("assay_defects_total", key, count.n)
        families.add("assay_defects_weighted_total", key, count.sum_w)
        families.add("assay_defects_moved_total", key, count.moved)
        families.add("assay_defects_moved_weighted_total", key, count.moved_sum_w)
