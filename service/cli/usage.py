"""The command `syncbn usage`: what is used of the quotas."""

import typer

from service.cli.options import JsonFlag, connect
from service.cli.output import answer, console, say
from service.cli.tables import usage_table


def usage(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show what is used of the quotas that concern your jobs."""
    with connect(ctx) as client:
        found = client.usage()
    answer(found, as_json=as_json, show=lambda: console().print(usage_table(found["data"])) if found["data"] else say("no quota"))
