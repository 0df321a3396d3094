"""`syncbn doctor`: what is wrong with this installation, and how to mend it. Runs `service.cli.checks` and shows what they find."""

from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from service.cli.checks import CHECKS, Finding
from service.cli.exits import JOB_FAILED
from service.cli.options import HomeOption, JsonFlag, Target
from service.cli.output import clean, console, print_json
from service.cli.serve import read_settings

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
