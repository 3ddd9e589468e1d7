"""What is promised under which fault: tests marked `fault`, and the table that a run of them writes.

python -m pytest -m fault --reliability=docs/reliability.md
"""

from __future__ import annotations

from pathlib import Path

import pytest

HEAD = """# Reliability

What is promised when something breaks, and the test that breaks it. `make faults` runs them and writes this page; a
test of several cases stands in one row.

| fault | promise | test | cases | result |
|---|---|---|---|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FILE", default="", help="Write the table of faults to FILE.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reliability") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Table(Path(config.getoption("--reliability"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if mark := item.get_closest_marker("fault"):
            item.user_properties.append(("fault", list(mark.args)))


class _Table:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[tuple[str, str, str], list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        fault = dict(report.user_properties).get("fault")
        if fault is None or (report.when != "call" and report.passed):
            return
        self.rows.setdefault((*fault, report.nodeid.partition("[")[0]), []).append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        lines = []
        for (fault, promise, test), outcomes in sorted(self.rows.items(), key=lambda row: row[0][2]):
            worst = next((outcome for outcome in outcomes if outcome != "passed"), "passed")
            where = " ".join(f"`{part}`" for part in test.split("::"))
            lines.append(f"| {fault} | {promise} | {where} | {len(outcomes)} | {worst} |\n")
        self.file.write_text(HEAD + "".join(lines), encoding="utf-8")
