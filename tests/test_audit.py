"""What the audit says: a finding fails, an unreachable service is said and does not."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

BAD = {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-2014-8", "fix_versions": ["2.7.2"]}]}
GOOD = {"name": "click", "version": "8.1.8", "vulns": []}
UNKNOWN = {"name": "own", "skip_reason": "not on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([BAD, GOOD], 1, "jinja2 2.4.1: PYSEC-2014-8, mended in 2.7.2"),
        ([GOOD, UNKNOWN], 0, "No known vulnerability in 1 installed packages."),
        ([UNKNOWN], 0, "The installed packages are NOT audited: the service knows none of them."),
    ],
)
def test_what_is_found_fails_and_what_is_not_does_not(packages, code, said):
    assert audit.verdict(code, json.dumps({"dependencies": packages, "fixes": []}), "") == (code, said)


def test_an_audit_that_does_not_run_fails():
    assert audit.verdict(1, "", "python: No module named pip_audit\n") == (
        1,
        "pip-audit failed: python: No module named pip_audit",
    )
    assert audit.verdict(2, "", "") == (1, "pip-audit failed: it ended with 2")


def test_a_service_that_cannot_be_reached_is_said_plainly():
    code, said = audit.verdict(1, "", "Traceback …\nConnectionError: Failed to resolve 'api.osv.dev'\n")
    assert code == 0
    assert "NOT audited: the OSV service cannot be reached (ConnectionError: Failed to resolve" in said
