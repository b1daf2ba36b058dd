"""The page of measurements says what the file of results says; its tables and plot hold the numbers given."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks import performance_page as page


def test_the_page_is_what_was_measured(monkeypatch):
    monkeypatch.setattr("sys.argv", ["performance_page.py", "--check"])
    assert page.main() == 0


def test_processes_are_compared_with_one_times_their_number():
    rows = [
        {"processes": n, "records_per_second": rate, "cpu_ms_per_record": 1.5} for n, rate in ((1, 50.0), (4, 150.0))
    ]
    assert "| 4 | 150.0 | 0.75 | 1.50 |" in page.processes(rows)
    shown = "".join(ElementTree.fromstring(page.plot(rows)).itertext())
    assert "50" in shown
    assert "150" in shown


def test_clients_are_compared_with_the_floor_and_with_the_cpu_of_the_openai_client():
    known = {"processes": 1, "prompt_tokens_per_record": 1700.0, "completion_tokens_per_record": 240.0, "rss_mb": 99.6}
    rows = [
        known | {"name": name, "records_per_second": rate, "cpu_ms_per_record": cpu}
        for name, rate, cpu in (("raw", 200.0, 0.1), ("openai", 180.0, 2.0), ("sqlite", 190.0, 1.5))
    ]
    beside = "| assay, whole system, SQLite | 1 | 190.0 | 0.95 | 1.50 | 0.75 | 1,700 + 240 | 100 |"
    alone = "| assay, whole system, SQLite | 1 | 190.0 |  | 1.50 |  | 1,700 + 240 | 100 |"
    assert page.throughput(rows).splitlines()[-1] == beside
    assert page.throughput(rows[2:]).splitlines()[-1] == alone


def test_only_what_was_measured_is_written_and_between_its_markers():
    row = {"records_per_second": 25.0, "median_seconds": 1.25, "worst_seconds": 2.5, "probes": 5}
    given = {"date": "2026-01-31", "python": "3.11", "cores": 2, "load_average": 1, "latency_seconds": 0.6}
    conditions = {**given, "in_flight": 128, "versions": {"celery": "5.7"}}
    before = "a\n<!-- lag -->\nold\n<!-- end of lag -->\nb\n<!-- processes -->\nkept\n<!-- end of processes -->\n"
    after = page.written(before, {"lag": {"conditions": conditions, "rows": [row]}})
    assert "old" not in after
    assert "| 25 | 1.25 | 2.50 | 5 |" in after
    assert "kept" in after
    assert after == page.written(after, {"lag": {"conditions": conditions, "rows": [row]}})
