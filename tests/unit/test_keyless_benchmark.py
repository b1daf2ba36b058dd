"""What `benchmarks/keyless.py` says of a judge, against scikit-learn and on sets whose answer is known."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from benchmarks.keyless import auc, best_threshold, fail_rates
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

RANDOM = np.random.default_rng(5)
FAILS = RANDOM.random(400) < 0.3
VALUES = np.round(np.clip(RANDOM.normal(0.7 - 0.25 * FAILS, 0.2), 0, 1), 2)
CONTEXT = "Standard shipping takes 3 to 7 business days and costs 4 euros."


def test_its_numbers_are_those_of_scikit_learn():
    assert auc(VALUES, FAILS) == pytest.approx(roc_auc_score(FAILS, -VALUES))
    f1, recall, precision = fail_rates(VALUES, FAILS, 0.6)
    assert f1 == pytest.approx(f1_score(FAILS, VALUES < 0.6))
    assert recall == pytest.approx((VALUES < 0.6)[FAILS].mean())
    assert precision == pytest.approx(FAILS[VALUES < 0.6].mean())


def test_no_threshold_has_a_better_balanced_accuracy_than_the_best_one():
    best = best_threshold(VALUES, FAILS)
    assert best is not None
    reached = balanced_accuracy_score(FAILS, best > VALUES)
    assert all(balanced_accuracy_score(FAILS, t > VALUES) <= reached + 1e-12 for t in np.linspace(0, 1.01, 203))


def test_one_class_has_no_auc_and_too_few_have_no_threshold():
    assert auc(VALUES[FAILS], FAILS[FAILS]) is None
    assert best_threshold(VALUES[:30], np.arange(30) < 5) is None


def row(number, output, label, **fields):
    return {
        "id": f"synthetic-{number}",
        "input": f"How long does shipping take? ({number})",
        "contexts": [CONTEXT],
        "output": output,
        "dimension": "faithfulness",
        "human_label": label,
        "meta": {},
        **fields,
    }


def test_sets_and_pairs_of_a_directory(tmp_path):
    good, bad = (
        "Standard shipping takes 3 to 7 business days.",
        "The museum shows 12 paintings by Vermeer every Tuesday.",
    )
    rows = [row(n, bad if n % 2 else good, float(n % 2 == 0)) for n in range(60)]
    with gzip.open(tmp_path / "one.faithfulness.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    # Of the other set, half of the inputs are new: only those may choose a threshold for the first.
    other = [r | {"input": r["input"] if n < 10 else f"another {n}"} for n, r in enumerate(rows)]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other))
    pair = row(1, good, 1.0, output_a=good, output_b=bad)
    del pair["output"]
    (tmp_path / "three.pairs.jsonl").write_text(json.dumps(pair) + "\n")
    done = subprocess.run(
        [sys.executable, "benchmarks/keyless.py", tmp_path, "--json"], capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    first = next(s for s in found["sets"] if "one" in s["set"])
    assert (first["records"], first["fails"], first["f1"], first["auc"]) == (60, 30, 1.0, 1.0)
    assert {t["chosen_on"]: t["f1"] for t in found["thresholds"] if t["set"] == first["set"]} == {
        "faithfulness: two": 1.0
    }
    assert found["pairs"] == [{**found["pairs"][0], "set": "faithfulness: three", "pairs": 1, "right": 1.0}]
