"""Who is in hand beside whom: many beside each other, or one alone."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from assay.isolation import Isolation


def test_one_alone_waits_for_those_before_and_goes_before_those_after() -> None:
    isolation, order = Isolation(), list[str]()
    wants, may_end = threading.Event(), threading.Event()

    def alone() -> None:
        wants.set()
        with isolation.alone():
            order.append("alone")
            may_end.wait(10)
            order.append("alone ends")

    def later() -> None:
        with isolation.beside_others():
            order.append("later")

    first, second = threading.Thread(target=alone), threading.Thread(target=later)
    with isolation.beside_others():
        first.start()
        wants.wait(10)
        while not isolation._waiting:
            pass
        second.start()
        order.append("before")
    may_end.set()
    for thread in (first, second):
        thread.join(10)
    assert order == ["before", "alone", "alone ends", "later"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_whoever_is_alone_is_alone_and_all_come_through(wishes: list[bool]) -> None:
    isolation, inside, seen = Isolation(), list[bool](), list[list[bool]]()
    lock = threading.Lock()

    def take(is_alone: bool) -> None:
        with isolation.alone() if is_alone else isolation.beside_others():
            with lock:
                inside.append(is_alone)
                seen.append(list(inside))
            with lock:
                inside.remove(is_alone)

    threads = [threading.Thread(target=take, args=(wish,)) for wish in wishes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(len(now) == 1 for now in seen if any(now)) == [True] * sum(wishes)
    assert len(seen) == len(wishes)


def test_an_error_within_frees_the_place() -> None:
    isolation = Isolation()
    for place in (isolation.alone, isolation.beside_others, isolation.alone):
        try:
            with place():
                raise ValueError("synthetic")
        except ValueError:
            pass
    with isolation.alone():
        pass
