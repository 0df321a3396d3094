"""The command about comparisons: compare."""

import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from service.cli.completion import norm_kinds
from service.cli.exits import INTERRUPTED, JOB_FAILED, UsageError
from service.cli.options import JsonFlag, SetOption, connect
from service.cli.output import answer, console, print_json, say
from service.cli.specs import parse, read_spec
from service.cli.tables import comparison_table
from service.client import Client
from service.client.answers import Comparison

_ID = re.compile(r"^cmp_[0-9A-HJKMNP-TV-Z]{26}$")
_INTERVAL_S = 0.5


def compare(  # noqa: PLR0917 - one option of the command line each
    ctx: typer.Context,
    spec: Annotated[
        str, typer.Argument(metavar="SPEC|ID", help="YAML or JSON file, - for stdin; or the id of a comparison.", show_default=False)
    ],
    norms: Annotated[
        str | None,
        typer.Option(
            "--norms", metavar="A,B,...", help="Kinds of normalization to compare.", show_default=False, autocompletion=norm_kinds
        ),
    ] = None,
    vary: Annotated[
        str | None, typer.Option("--vary", metavar="A.B=C,D,...", help="Another field, and its values.", show_default=False)
    ] = None,
    assignments: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and print every spec with every default.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait until all jobs have ended; exit 1 unless all succeeded.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run one spec several times, alike but for one field, and show the table. With an ID: the table of one that was started before."""
    is_known = _ID.match(spec) is not None
    if is_known and (norms or vary or assignments or dry_run):
        options = "--norms, --vary, --set and --dry-run"
        raise UsageError(f"{spec} is started already; expected a SPEC beside {options}; leave them out to see its table")
    ask = None if is_known else (read_spec(spec, assignments or ()), *_varied(norms, vary))
    with connect(ctx) as client:
        if ask is None:
            comparison = client.comparison(spec)
        else:
            document, field, values = ask
            if dry_run:
                print_json(client.validate_comparison(document, values, field=field))
                return
            comparison = client.compare(document, values, field=field)
        if follow:
            comparison = _until_ended(client, comparison)
    answer(comparison, as_json=as_json, show=lambda: _show(comparison))
    if follow and any(row["state"] != "succeeded" for row in comparison["rows"]):
        raise typer.Exit(JOB_FAILED)


def _varied(norms: str | None, vary: str | None) -> tuple[str, Sequence[Any]]:
    """Return the field and its values."""
    if (norms is None) == (vary is None):
        given = "both are given" if norms else "neither is given"
        raise UsageError(f"--norms or --vary says what to compare, and {given}; for example --norms sync_bn,batch_norm,group_norm")
    if norms is not None:
        return "norm.kind", [kind.strip() for kind in norms.split(",")]
    field, found, text = (vary or "").partition("=")
    if not found or not field:
        raise UsageError(f"--vary {vary!r} is not KEY.KEY=VALUE,VALUE; for example --vary optimizer.lr=0.1,0.01")
    values = parse(f"[{text}]", f"--vary {field}")
    return field, values


def _until_ended(client: Client, comparison: Comparison) -> Comparison:
    comparison_id = comparison["id"]
    try:
        while comparison["state"] != "ended":
            time.sleep(_INTERVAL_S)
            comparison = client.comparison(comparison_id)
    except KeyboardInterrupt:
        say(f"{comparison_id} goes on without you; come back with `syncbn compare {comparison_id} -f`")
        raise typer.Exit(INTERRUPTED) from None
    return comparison


def _show(comparison: Comparison) -> None:
    out = console()
    out.print(f"{comparison['id']}  {comparison['state']}  {comparison['field']}", soft_wrap=True)
    out.print(comparison_table(comparison["rows"]))
