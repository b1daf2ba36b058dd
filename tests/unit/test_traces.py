"""Spans wait for their trace, within bounds."""

from __future__ import annotations

import threading

from assay.traces import Traces


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(**limits: float) -> tuple[Traces[str], Clock]:
    clock = Clock()
    return Traces(clock=clock, **limits), clock  # type: ignore[arg-type]


def test_a_trace_is_due_once_its_root_has_ended() -> None:
    traces, _ = kept(wait_seconds=30)
    traces.add("a", "child")
    assert list(traces.due()) == []
    traces.add("a", "root", is_root=True, is_wanted=False)
    assert list(traces.due()) == [["child", "root"]]
    assert len(traces) == traces.bytes == 0


def test_after_its_root_a_trace_settles() -> None:
    traces, clock = kept(wait_seconds=30, settle_seconds=5)
    traces.add("a", "root", is_root=True)
    clock.now = 4
    traces.add("a", "late child")
    clock.now = 8.9
    assert list(traces.due()) == []
    clock.now = 9
    assert list(traces.due()) == [["root", "late child"]]


def test_without_a_root_a_trace_waits_from_its_latest_span_and_not_for_ever() -> None:
    traces, clock = kept(wait_seconds=10, longest_seconds=25)
    for second in (0, 9, 18, 24):
        clock.now = second
        assert list(traces.due()) == []
        traces.add("a", str(second))
    clock.now = 25
    assert list(traces.due()) == [["0", "9", "18", "24"]]


def test_traces_of_no_interest_are_forgotten() -> None:
    traces, clock = kept(wait_seconds=10)
    traces.add("http", "child", is_wanted=False)
    traces.add("http", "root", is_root=True, is_wanted=False)
    assert len(traces) == 0
    traces.add("single", "root", is_root=True, is_wanted=False)
    assert len(traces) == 0
    traces.add("unfinished", "child", is_wanted=False)
    clock.now = 10
    assert list(traces.due()) == []
    assert len(traces) == 0


def test_there_is_room_for_so_many_items_and_bytes() -> None:
    traces, _ = kept(most_items=2, most_bytes=100)
    assert traces.add("a", "1", size=60)
    assert not traces.add("b", "2", size=41)
    assert traces.has_room(40)
    assert traces.add("b", "2", size=40)
    assert not traces.add("c", "3")
    assert not traces.has_room(0)
    assert sorted(traces.due(everything=True)) == [["1"], ["2"]]
    assert traces.add("c", "3", size=100)


def test_what_is_taken_out_has_its_room_until_the_next_is_asked_for() -> None:
    traces, _ = kept(most_items=2)
    for trace_id in ("a", "b"):
        traces.add(trace_id, trace_id, size=10, is_root=True)
    due = traces.due()
    assert next(due) == ["a"]
    assert (len(traces), traces.bytes) == (2, 20)
    assert not traces.add("c", "c")
    assert next(due) == ["b"]
    assert (len(traces), traces.bytes) == (1, 10)
    assert next(due, None) is None
    assert len(traces) == traces.bytes == 0


def test_many_threads_lose_nothing() -> None:
    traces: Traces[int] = Traces(most_items=100_000)
    found: list[int] = []

    def add(thread: int) -> None:
        for number in range(2_000):
            assert traces.add(number % 50, thread * 2_000 + number, size=3, is_root=number % 7 == 0)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found += [item for items in traces.due() for item in items]
    found += [item for items in traces.due(everything=True) for item in items]
    assert sorted(found) == list(range(8_000))
    assert len(traces) == traces.bytes == 0
