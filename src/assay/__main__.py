"""Entry point of the `assay` command: turns every expected error into one line and an exit code."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 something outside is away, 2 a mistake that a person can mend."""
    try:
        from assay.cli import run

        code = run()
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("assay"):
            raise
        print(  # noqa: T201
            f"error: {error.name} is not installed: the assay command needs `pip install 'assay[worker]'`",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


if __name__ == "__main__":
    main()
