#!/usr/bin/env python3
"""Ask a vulnerability service about every package of requirements.lock. Exit code 1 when it knows of any weakness.

A service that cannot be reached, or knows no package, proves nothing: that is said, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(pip_audit: str) -> int:
    """Ask, say what is known, and return the exit code."""
    asked = [pip_audit, "--requirement", "requirements.lock", "--require-hashes", "--disable-pip", "--format", "json"]
    try:
        done = subprocess.run(
            [*asked, "--timeout", "10", "--progress-spinner", "off"], capture_output=True, text=True, timeout=50
        )
    except subprocess.TimeoutExpired:
        print("audit: the vulnerability service did not answer in time: NOTHING WAS CHECKED")
        return 0
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]
        print(f"audit: the vulnerability service cannot be asked: NOTHING WAS CHECKED ({said})")
        return 0
    checked = [package for package in packages if "skip_reason" not in package]
    weak = [(package, weakness) for package in checked for weakness in package["vulns"]]
    for package, weakness in weak:
        mend = ", ".join(weakness["fix_versions"]) or "no release yet"
        print(f"{package['name']} {package['version']}: {weakness['id']}; mended in: {mend}")
    print(f"audit: {len(checked)} of {len(packages)} packages checked, {len(weak)} known weaknesses")
    if not checked:
        print("audit: the vulnerability service knows none of them: NOTHING WAS CHECKED")
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
