"""Coverage-guided fuzzing of the readers with atheris: `python tests/fuzz/coverage_guided.py rows --seconds 60`.

Atheris is no dependency: `pip install atheris`. An input that fails is written to `crash-*` in the present directory.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed, and has no wheel for every Python: pip install atheris")
    with atheris.instrument_imports(include=["assay"]):
        from fuzz.targets import TARGETS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS, nargs="?")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--seconds", type=int, default=30)
    given = parser.parse_args()
    if given.list or given.target is None:
        print(*TARGETS)
        return
    target = TARGETS[given.target]
    # libFuzzer leaves the process without unwinding it, so nobody could remove a directory after it: few small files.
    corpus = Path(tempfile.mkdtemp(prefix="assay-fuzz-"))
    for place, seed in enumerate(target.seeds):
        (corpus / str(place)).write_bytes(seed)
    options = [f"-max_total_time={given.seconds}", "-timeout=20", "-rss_limit_mb=1000", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], lambda data: target.read(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
