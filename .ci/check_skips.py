"""Fail where a test of a JUnit report was skipped for a reason that is not listed."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(report: str, allowed: str) -> int:
    """Print every skip; return 1 where one has no listed reason."""
    lines = Path(allowed).read_text(encoding="utf-8").splitlines()
    reasons = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    bad = 0
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.iter("skipped"):
            message = skip.get("message", "")
            listed = any(message.startswith(reason) for reason in reasons)
            print(f"skipped {case.get('classname')}::{case.get('name')}: {message}{'' if listed else '  (not listed)'}")
            bad += not listed
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
