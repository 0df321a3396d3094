"""What the ranks of a new group agree on after a loss or a resize: whose state counts, who takes it over, what is done again. Pure.

A step is complete on a rank when its optimizer has stepped. The optimizer steps after the last collective of a step, so a rank that has
completed a step knows that no other is more than one behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.errors import RankLostError


@dataclass(frozen=True)
class View:
    """What one rank brings into a new group."""

    is_new: bool
    """The process has not been in a group before."""
    was_reporter: bool
    """It was rank 0 of its last group, which reports and writes checkpoints."""
    has_state: bool
    """False for a new process that has taken the place of a dead one when training had begun."""
    step: int
    """Completed steps."""
    saved: int
    """The step at which it last evaluated and handed the checkpoint over to be written."""


@dataclass(frozen=True)
class Decision:
    """What follows for the whole group; the same on every rank, because every rank decides by the same views."""

    source: int
    """The rank whose state counts."""
    step: int
    """Completed steps of everybody, from now on."""
    adopters: frozenset[int]
    """Ranks that take the state over from `source`: those that have none, and those that are behind."""
    is_saved: bool
    """Whether the evaluation and the checkpoint due at `step` need not be done again."""
    is_reporter_new: bool
    """Whether rank 0, which reports the metrics, is another process than before and must report again what that was not heard saying."""


def decide(views: Sequence[View]) -> Decision:
    """Return what a group does whose ranks bring these views, in the order of ranks.

    Raises:
        RankLostError: no rank has state.
    """
    steps = [view.step for view in views if view.has_state]
    if not steps:
        raise RankLostError(f"none of the {len(views)} ranks holds any state; expected at least one; start from the last checkpoint")
    step = max(steps)
    current = [rank for rank, view in enumerate(views) if view.has_state and view.step == step]
    return Decision(
        source=current[0],
        step=step,
        adopters=frozenset(range(len(views))) - frozenset(current),
        # Rank 0 writes. Where it is another, whatever the old one had in its hands is done again: a checkpoint that is there is kept.
        is_saved=(views[0].was_reporter or all(view.is_new for view in views))
        and all(view.saved == step for view in views if view.has_state),
        is_reporter_new=not views[0].was_reporter,
    )
