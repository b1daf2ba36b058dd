"""Whatever bytes a reader is given: only the errors that it names, nothing lost, and cost in step with the size."""

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.hostile import WHOLE, mutated
from fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("ASSAY_FUZZ_EXAMPLES", "25"))


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_documents(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES,
        derandomize="ASSAY_FUZZ_EXAMPLES" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(mutated(target.seeds), mutated(target.seeds), st.binary(max_size=200)))
    def run(data: bytes) -> None:
        target.read(data)

    run()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(120)  # what takes minutes hangs
def test_hostile_documents(name: str) -> None:
    for document, data in WHOLE.items():
        # The YAML reader takes a second for whatever opens a thousand brackets: once is enough.
        if name not in ("rubric", "budgets", "prices") or not document.startswith(("deep", "one name")):
            TARGETS[name].read(data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_start_from_documents_that_are_taken(name: str) -> None:
    for seed in TARGETS[name].seeds:
        assert TARGETS[name].read(seed), seed


def _calls(name: str, data: bytes) -> int:
    """How many functions are called while a document is read."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert TARGETS[name].read(data)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.grown])
def test_twice_the_input_is_twice_the_work(name: str) -> None:
    grown = TARGETS[name].grown
    assert grown is not None
    _calls(name, grown(1))  # what is imported and cached at first
    small, large = (_calls(name, grown(count)) for count in (100, 200))
    # Quadratic work would be four times as much; what is done once makes it less than twice.
    assert large <= 2.2 * small


_MEASURED = """
import sys
from assay.codec import decode_record
from assay.errors import RecordError

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

head = b'{"record_id":"r","timestamp":"2026-01-31T12:00:00Z","app":"a","output":"o",'
for start, part, end in (
    (b'"input":"q","contexts":[', b"{}", b"]}"),
    (b'"input":"q","contexts":[', b"1", b"]}"),
    (b'"input":[', b"1", b"]}"),
    (b'"input":"q","tool_events":[', b"[]", b"]}"),
    (b'"input":"q","metadata":{"a":[', b"{}", b"]},"),
):
    data = head + start + b",".join([part] * (990_000 // (len(part) + 1))) + end
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = most()
    try:
        decode_record(data)
        sys.exit("taken")
    except RecordError:
        print(part.decode(), most() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks of memory are reset on Linux only")
def test_a_record_that_is_all_mistakes_takes_little_memory() -> None:
    """Two processes of a worker may each hold one: a tenth of a small container, 512 MB, is theirs."""
    told = subprocess.run([sys.executable, "-c", _MEASURED], capture_output=True, text=True, check=True, timeout=120)
    peaks = [int(line.split()[1]) for line in told.stdout.splitlines()]
    assert len(peaks) == 5
    assert max(peaks) < 51_200, told.stdout
