"""Ask the OSV database whether an installed package has a known vulnerability.

Ends with 1 if one has. Where the database cannot be reached this is said and is no failure: the code is the same with
and without a network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

# How the libraries that pip-audit asks through say that they got no answer.
AWAY = re.compile(r"ConnectionError|ConnectTimeout|ReadTimeout|Failed to resolve|Max retries exceeded|ServiceError")
COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json", "--skip-editable"),
    *("--progress-spinner", "off", "--timeout", "10"),
)


def findings(report: dict[str, Any]) -> list[str]:
    """A line for each vulnerability: the package, what it is called, and where it is mended."""
    return [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or '-'}"
        for package in report["dependencies"]
        for found in package.get("vulns", ())
    ]


def verdict(code: int, out: str, err: str) -> tuple[int, str]:
    """The exit code, and what to say, of how pip-audit ended."""
    try:
        report = json.loads(out)
    except ValueError:
        reason = (err.strip().splitlines() or [f"it ended with {code}"])[-1][:300]
        if not AWAY.search(err):
            return 1, f"pip-audit failed: {reason}"
        return 0, f"The installed packages are NOT audited: the OSV service cannot be reached ({reason})."
    if found := findings(report):
        return 1, "\n".join(found)
    audited = sum("skip_reason" not in package for package in report["dependencies"])
    if not audited:
        return 0, "The installed packages are NOT audited: the service knows none of them."
    return 0, f"No known vulnerability in {audited} installed packages."


def main() -> int:
    """Run pip-audit over the environment of this interpreter."""
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    code, said = verdict(done.returncode, done.stdout, done.stderr)
    print(said, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
