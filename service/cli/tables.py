"""Answers of the service as tables and lines for people. Pure but for the clock; prints nothing."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from service.cli.output import clean

Json = Mapping[str, Any]
_STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "recovering": "magenta"}


def number(value: Any, digits: int = 4) -> str:
    """Return a number in few characters; a dash for none.

    >>> number(0.123456), number(None), number(3)
    ('0.1235', '-', '3')
    """
    if value is None:
        return "-"
    return str(value) if isinstance(value, int | str) else f"{value:.{digits}g}"


def size(num_bytes: float) -> str:
    """Return bytes for people.

    >>> size(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def age(since: str | None, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was, in one unit."""
    if not since:
        return "-"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(since)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def moment(time: str | None) -> str | None:
    """Return an RFC 3339 time as the clock on the wall has it, to the second.

    >>> moment("2026-01-31T12:34:56.789012Z")[:4], moment(None)
    ('2026', None)
    """
    return time and datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    return Text(clean(state), style=_STYLES.get(state, ""))


def _table(*columns: str, gap: int = 2) -> Table:
    """Return an empty table. Columns: `>` aligns right, `~` may be folded where the terminal is narrow; figures never are."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for name in columns:
        table.add_column(name.lstrip(">~"), justify="right" if name.startswith(">") else "left", no_wrap="~" not in name, overflow="fold")
    return table


def jobs_table(jobs: Iterable[Json]) -> Table:
    """Return jobs, one a row."""
    table = _table("ID", "~NAME", "STATE", ">STEP", ">ACC", ">RANKS", ">AGE")
    for job in jobs:
        metrics, progress = job["metrics"], job["progress"]
        step = f"{progress['step']}/{number(progress['total_steps'])}"
        cells = step, number(metrics.get("val/accuracy")), str(job["world_size"]), age(job["created_at"])
        table.add_row(job["id"], Text(clean(job["name"])), state_text(job["state"]), *cells)
    return table


def job_table(job: Json) -> Table:
    """Return one job, one fact a row."""
    table = _table("", "~")
    table.show_header = False
    progress = job["progress"]
    facts = {
        "id": job["id"], "name": job["name"], "state": job["state"], "reason": job["reason"], "message": job["message"],
        "step": f"{progress['step']}/{number(progress['total_steps'])}", "epoch": number(progress["epoch"]), "samples": progress["samples"],
        "workers": job["world_size"], **{what: moment(job[f"{what}_at"]) for what in ("created", "started", "finished")},
        "labels": ", ".join(f"{key}={value}" for key, value in job["labels"].items()),
    }  # fmt: skip
    facts |= {name: number(value, 6) for name, value in sorted(job["metrics"].items())}
    for name, value in facts.items():
        if value not in {None, ""}:
            table.add_row(Text(clean(name), style="bold"), Text(clean(value)))
    for change in job["transitions"]:
        table.add_row(
            Text(f"  {moment(change['at'])}"),
            Text(clean(f"{change['state']} ({change['reason']})" if change["reason"] else change["state"])),
        )
    return table


def tokens_table(tokens: Iterable[Json]) -> Table:
    """Return tokens, one a row."""
    table = _table("ID", "~NAME", "PROJECT", "SCOPES", ">AGE", "ENDS")
    for row in tokens:
        ends = f"revoked {row['revoked_at']}" if row["revoked_at"] else row["expires_at"] or "never"
        table.add_row(row["id"], Text(clean(row["name"])), row["project"], ",".join(row["scopes"]), age(row["created_at"]), ends)
    return table


def usage_table(groups: Iterable[Json]) -> Table:
    """Return what groups use of their quotas, one a row: `used/limit`, or only what is used where there is none."""
    table = _table("~GROUP", ">JOBS", ">WORKERS", ">GPUS", ">QUEUED", ">STORED")
    for row in groups:
        cells = []
        for what in ("running_jobs", "workers", "gpus", "queued_jobs", "storage_bytes"):
            shown = size if what == "storage_bytes" else str
            limit = row["limits"].get(what)
            cells.append(shown(row["used"][what]) + ("" if limit is None else f"/{shown(limit)}"))
        table.add_row(Text(clean(f"{row['subject']}={row['value']}")), *cells)
    return table


def code_table(bundles: Iterable[Json]) -> Table:
    """Return uploaded code, one a row."""
    table = _table("ID", "PROJECT", ">FILES", ">SIZE", ">AGE", ">SENT LAST")
    for row in bundles:
        ages = (age(row["created_at"]), age(row["uploaded_at"]))
        table.add_row(row["id"], row["project"], str(row["num_files"]), size(row["size_bytes"]), *ages)
    return table


def metrics_table(series: Iterable[Json]) -> Table:
    """Return series in summary, one a row."""
    table = _table("~METRIC", ">POINTS", ">LAST STEP", ">LAST", ">MIN", ">MAX")
    for row in series:
        values = [value for _, value in row["points"]]
        step = row["points"][-1][0] if values else None
        summary = (values[-1], min(values), max(values)) if values else (None, None, None)
        table.add_row(Text(clean(row["name"])), str(len(values)), number(step), *(number(value, 6) for value in summary))
    return table


def comparison_table(rows: Sequence[Json]) -> Table:
    """Return the rows of a comparison, one a row; of metrics on the validation data the newest value and the best."""
    names = list(dict.fromkeys(name for row in rows for name in row["validation"]))
    scores = [f">{name}" for name in names]
    table = _table("~VALUE", "STATE", ">STEP", *scores, ">train/loss", ">SAMPLES/S", ">SYNC MS", ">SYNC", "HEALTH")
    for row in rows:
        found = [row["validation"].get(name) for name in names]
        cells = ["-" if one is None else f"{number(one['last'])} ({number(one['best'])})" for one in found]
        time_ms = None if row["sync_time_s"] is None else row["sync_time_s"] * 1e3
        sent = "-" if row["sync_bytes"] is None else size(row["sync_bytes"])
        cells += [number(row["train_loss"]), number(row["samples_per_s"]), number(time_ms, 3), sent]
        health = "-" if row["health"] is None else row["health"]["status"]
        step = f"{row['step']}/{number(row['total_steps'])}"
        table.add_row(Text(clean(row["value"])), state_text(row["state"] or "deleted"), step, *cells, health)
    return table


def checkpoints_table(checkpoints: Iterable[Json]) -> Table:
    """Return checkpoints, one a row."""
    table = _table(">STEP", ">EPOCH", ">LOSS", ">ACCURACY", "HEALTH", ">SIZE", ">AGE", "")
    for row in checkpoints:
        marks = " ".join(word for word in ("best", "latest") if row.get(f"is_{word}"))
        marks += " pinned" if row.get("pinned") else ""
        marks += " damaged" if row.get("damaged") else ""
        metrics = row["metrics"]
        health = row["health"]["status"] if isinstance(row["health"], dict) else str(row["health"])
        cells = number(row["epoch"]), number(metrics.get("val/loss")), number(metrics.get("val/accuracy")), health
        table.add_row(str(row["step"]), *cells, size(row["size_bytes"]), age(row["created_at"]), marks)
    return table


def predictions_table(predictions: Iterable[Json]) -> Table:
    """Return classes with their probabilities, one a row; their names where the data set has them."""
    table = _table(">LABEL", "~NAME", ">PROBABILITY")
    for row in predictions:
        table.add_row(str(row["label"]), Text(clean(row.get("name") or "-")), f"{100 * row['probability']:.1f} %")
    return table


def difference_table(layers: Iterable[Json]) -> Table:
    """Return how far every layer's running statistics are apart, one a row; empty where the other has no such layer."""
    figures = (f">{part}\n{summary}" for part in ("mean", "var") for summary in ("min", "avg", "max"))
    table = _table("~LAYER", ">\nC", ">\nDISTANCE", *figures, gap=1)
    for layer in layers:
        parts = [(layer["difference"] or {}).get(name, {}) for name in ("running_mean", "running_var")]
        table.add_row(
            Text(clean(layer["name"])),
            number(layer["num_channels"]),
            number(layer.get("distance"), 3),
            *(number(part.get(key), 2) for part in parts for key in ("min", "mean", "max")),
        )
    return table


def statistics_table(layers: Iterable[Json]) -> Table:
    """Return every layer's running statistics, one a row: channels, batches seen, range and average over the channels."""
    figures = (f">{part}\n{summary}" for part in ("mean", "var") for summary in ("min", "avg", "max"))
    table = _table("~LAYER", ">\nC", ">\nseen", *figures, "~HEALTH", gap=1)
    for layer in layers:
        parts = [layer[name] or {} for name in ("running_mean", "running_var")]
        figures = (number(part.get(key), 2) for part in parts for key in ("min", "mean", "max"))
        findings = ", ".join(clean(row.get("code", row)) if isinstance(row, dict) else clean(row) for row in layer.get("health") or ())
        counts = number(layer["num_channels"]), number(layer["num_batches_tracked"])
        table.add_row(Text(clean(layer["name"])), *counts, *figures, Text(findings or "ok", style="yellow" if findings else "green"))
    return table
