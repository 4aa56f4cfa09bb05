#!/usr/bin/env python3
"""Adds up pytest's own reports: what ran, by part, and the sum."""

from __future__ import annotations

import pathlib
import sys
from xml.etree import ElementTree


def count(report: pathlib.Path) -> dict[str, int]:
    """Return the counts of one JUnit report.

    Args:
        report: A file that pytest wrote with --junit-xml.
    """
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):  # noqa: S314 (our own file)
        for name in totals:
            totals[name] += int(suite.get(name, "0"))
    return totals


def line(name: str, totals: dict[str, int]) -> str:
    """Return the counts as a line of text.

    Args:
        name: What was counted.
        totals: What `count` returned.
    """
    failed = totals["failures"] + totals["errors"]
    passed = totals["tests"] - failed - totals["skipped"]
    return f"{name}: {passed} passed, {failed} failed, {totals['skipped']} skipped"


def main(directory: str) -> int:
    """Print the counts; the exit status is 1 when a test failed.

    Args:
        directory: Where the reports are.
    """
    reports = sorted(pathlib.Path(directory).glob("*.xml"))
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for report in reports:
        totals = count(report)
        print(line(report.stem, totals))
        total = {name: total[name] + totals[name] for name in total}
    if reports:
        print(line("all", total))
    return int(total["failures"] + total["errors"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
