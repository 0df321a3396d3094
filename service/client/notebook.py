"""A job as HTML for notebooks. Pure; everything that a user or a rank chose is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

_COLOURS = {"succeeded": "#2e7d32", "failed": "#c62828", "cancelled": "#b26a00", "running": "#0277bd", "recovering": "#7b1fa2"}


def job_html(job: Mapping[str, Any]) -> str:
    """Return state, progress and the latest metrics of a job as an HTML table.

    >>> "<script>" in job_html({"id": "job_1", "name": "<script>"})
    False
    """
    state, progress = str(job.get("state", "")), job.get("progress") or {}
    coloured = f'<b style="color:{_COLOURS.get(state, "inherit")}">{escape(state)}</b>'
    reason = " ".join(str(job[key]) for key in ("reason", "message") if job.get(key))
    rows = {
        "job": f"{escape(str(job.get('name', '')))} <code>{escape(str(job.get('id', '')))}</code>",
        "state": f"{coloured} {escape(reason)}",
        "progress": _progress(progress.get("step"), progress.get("total_steps")),
    }
    rows |= {escape(name): f"{value:.6g}" for name, value in sorted((job.get("metrics") or {}).items())}
    cells = "".join(
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{value}</td></tr>' for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _progress(step: int | None, total: int | None) -> str:
    if not total:
        return "not started" if not step else f"step {step}"
    return f'<progress value="{step or 0}" max="{total}"></progress> step {step or 0} of {total}'
