"""Figures of metrics for notebooks. Loads Plotly, an optional extra, only where one is made."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.client.errors import MissingExtra, PlotError


def figure(series: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> Any:
    """Return a Plotly figure with a panel for each metric's last name: train/loss and val/loss share one.

    Args:
        series: by name the points [step, value].

    Raises:
        MissingExtra: Plotly is not installed. PlotError: there is no point to show.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtra("a figure", "plotly", "notebook") from error
    empty = [name for name, points in series.items() if not points]
    if empty or not series:
        raise PlotError(f"{title} has no points of {', '.join(empty) or 'any metric'} yet; see job.metrics() for those that it has")
    panels = list(dict.fromkeys(_panel(name) for name in series))
    made = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, subplot_titles=panels, vertical_spacing=0.25 / len(panels))
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        made.add_scatter(x=steps, y=values, name=name, mode="lines", row=panels.index(_panel(name)) + 1, col=1)
    made.update_xaxes(title_text="step", row=len(panels), col=1)
    made.update_layout(title=title, height=180 + 220 * len(panels), hovermode="x unified")
    return made


def _panel(name: str) -> str:
    """Return what belongs together: of train/loss and val/loss the loss."""
    scope, _, rest = name.partition("/")
    return rest if scope in {"train", "val"} and rest else name
