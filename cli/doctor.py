"""`apprentice doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from apprentice import exit_codes
from cli.checks import Finding, all_checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (runs)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each finding as it is made; return 1 where one of them keeps runs from working."""
    from apprentice.config import ServiceSettings

    services = ServiceSettings()
    findings: list[Finding] = []
    for check in all_checks(services.host, services.evalserver_port, arguments.runs.absolute()):
        findings.append(check())
        if not arguments.json:
            print(describe(findings[-1]), flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        levels = Counter(finding.level for finding in findings)
        print(f"{levels['OK']} fine, {levels['WARN']} to know of, {levels['FAIL']} to mend")
    return exit_codes.FAILED if any(finding.level == "FAIL" for finding in findings) else 0


def describe(finding: Finding) -> str:
    """Return a finding as one line, and its advice as another."""
    line = f"{finding.level:4}  {finding.name:10} {finding.found}"
    return f"{line}\n{'':17}-> {finding.advice}" if finding.advice else line
