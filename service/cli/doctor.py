"""`syncbn doctor`: what is wrong with this installation, and how to mend it. Runs the checks and shows what they find."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import typer
from rich.table import Table
from rich.text import Text

from service.cli import checks, reach
from service.cli.exits import JOB_FAILED
from service.cli.finding import Finding
from service.cli.options import HomeOption, JsonFlag, Target
from service.cli.output import clean, console, print_json
from service.cli.serve import read_settings
from service.settings import Settings

CHECKS: Final[tuple[Callable[[Settings], Finding], ...]] = (
    checks.python_version, checks.torch, checks.gpu, checks.ray, checks.home, checks.disk, checks.memory, checks.shared_memory, checks.port,
    checks.host_name, checks.loopback, reach.interface, reach.storage, reach.policy, reach.controller, reach.service_version, reach.clock,
)  # fmt: skip
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(ctx: typer.Context, home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Check this installation; exit 1 when something is broken."""
    target = ctx.find_object(Target) or Target(None, None)
    chosen = home or target.home
    settings = read_settings({"home": chosen} if chosen else {})
    findings = [check(settings) for check in CHECKS]
    is_broken = any(finding.status == "fail" for finding in findings)
    if as_json:
        print_json({"status": "fail" if is_broken else "ok", "checks": [asdict(finding) for finding in findings]})
    else:
        console().print(_table(findings))
    if is_broken:
        raise typer.Exit(JOB_FAILED)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.check, Text(clean(finding.found) + remedy))
    return table
