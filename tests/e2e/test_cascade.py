"""A cascade in a real worker: fewer calls, most of what fails still found, and a gauge that says the truth."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from assay.budgets import is_thinned
from assay.enqueue import enqueue
from assay.records import Context, Record
from assay.rubrics import SHIPPED
from deployment import Deployment, end, get_json, record, total, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SHARE, RECORDS = 0.25, 400


def traffic(index: int) -> Record:
    """Synthetic: a fifth is made up, and three in four of those are broken; so is one in twenty of the others, of which
    the words show nothing. The judge sees it.
    """
    made_up, odd = index % 5 == 0, index // 5
    broken = odd % 4 > 0 if made_up else index % 20 == 1
    state = "broken" if broken else "sound"
    price = "77 euros and ships from Madrid" if made_up else f"{index} euros"
    contexts = (Context(text=f"Item {index} costs {index} euros. It is {state}, and weighs 2 kilograms."),)
    return record(index, output=f"Item {index} costs {price}. It is {state}.", contexts=contexts)


def calls(server: str) -> int:
    """That the judge's server has seen."""
    return int(get_json(server.removesuffix("/v1") + "/traffic")["calls"])


def test_fewer_calls_are_made_what_fails_is_found_and_the_gauge_is_unbiased(tmp_path: Path) -> None:
    rubric = (SHIPPED / "faithfulness.yaml").read_text()
    (tmp_path / "rubrics").mkdir()
    file = tmp_path / "rubrics" / "faithfulness.yaml"
    file.write_text(f"{rubric}cascade: {{first: lexical, share: {SHARE}}}\n")
    records = [traffic(index) for index in range(RECORDS)]
    fails = {r.record_id for r in records if "broken" in r.output}
    in_doubt = {r.record_id for r in records if "Madrid" in r.output}
    asked = in_doubt | {r.record_id for r in records if not is_thinned(r.record_id, SHARE)}
    settings = {"rubrics": file, "lease_seconds": 3}
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        server = deployment.start_judge("--latency", "0.05", "--bad-when", "broken")
        # Killed in its midst: whoever takes over draws as it did.
        first = deployment.start_worker()
        assert enqueue(records, deployment.queue) == RECORDS
        wait_until(lambda: deployment.record_rows() > RECORDS / 10, first)
        os.kill(first.pid, signal.SIGKILL)
        worker = deployment.start_worker()
        deployment.drain(worker)
        outcomes = deployment.outcomes()["faithfulness"]
        assert outcomes == {"scored": len(asked), "not_applicable": RECORDS - len(asked)}
        # What the first one had in hand may have been asked for twice.
        assert len(asked) <= calls(server) <= 2 * len(asked)
        assert len(asked & fails) / len(fails) > 0.8 > 2 * len(asked - in_doubt) / (RECORDS - len(in_doubt))
        metrics = deployment.start_exporter()
        window = {"rubric": "faithfulness", "window": "1h"}
        lower, ratio, upper = (
            total(metrics, f"assay_pass_ratio{part}", **window) for part in ("_ci_lower", "", "_ci_upper")
        )
        truth = 1 - len(fails) / RECORDS
        assert lower <= truth <= upper
        assert abs(ratio - truth) < 0.05
        assert upper - lower < 0.16, "it is not right by being vague"
        assert total(metrics, "assay_pass_ratio_unweighted", **window) < truth - 0.1
        assert total(metrics, "assay_window_interactions", **window) == pytest.approx(RECORDS, rel=0.1)
        left_out = {"rubric": "faithfulness", "reason": "passed_over_by_cascade"}
        assert total(metrics, "assay_not_applicable_total", **left_out) == RECORDS - len(asked)
        more, before = [traffic(index) for index in range(RECORDS, RECORDS + 100)], calls(server)
        assert enqueue(more, deployment.queue) == 100
        deployment.drain(worker)
        passed_over = [r for r in more if "Madrid" not in r.output and is_thinned(r.record_id, SHARE)]
        assert calls(server) - before == 100 - len(passed_over) < 60
        assert end(worker) == 0
