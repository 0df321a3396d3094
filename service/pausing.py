"""How long a pause waits for a checkpoint of its own, and from where the job then goes on. Pure: what was heard in, words out.

A pause is to cost nothing, so ranks are let come to the end of their step and save. Where they do not, the pause ends the job's processes
without that, and the job goes on from the checkpoint before. Evaluations and the writing of checkpoints take as long as they take.
"""

from collections.abc import Mapping

from service.stalling import SILENT_S, Heard

STEP_S = 60.0
"""How much longer than usual ranks may take to come to the end of the step in which they were asked."""
OTHER_S = 300.0
"""The same for what has no usual time: processes that meet anew, a first step, data, compilation."""
FORMING_S = 5.5
"""How long ranks that have not trained yet may take to begin: nothing is lost without them. Longer than a poll of a rank, so that a
controller that takes over has heard whether they have."""
USUAL_TIMES = 10.0
"""How many times as long as the longest of the last steps is waited beyond that."""
_UNHURRIED = frozenset({"evaluating", "recalibrating", "finishing"})


def is_unhurried(heard: Mapping[int, Heard], phases: Mapping[int, str]) -> bool:
    """Return whether some rank is at something that takes as long as it takes: the time before does not count then.

    Args:
        heard: by rank. Where one does not answer, the others may wait for it in vain, whatever they are at.
        phases: what each does, as far as that is known.
    """
    return all(one.ago_s <= SILENT_S for one in heard.values()) and any(phases.get(rank) in _UNHURRIED for rank in heard)


def overdue(heard: Mapping[int, Heard], asked_s: float, *, has_begun: bool = True) -> str:
    """Return why a pause does not wait for its checkpoint any longer, for people; nothing while it does.

    Args:
        heard: every rank that has not ended; for how long it has not been heard, where it never was.
        asked_s: for how long they have been asked to pause, since one was at something unhurried.
        has_begun: whether any rank has trained in this attempt, so that there is something to save.
    """
    if is_unbegun_overdue(asked_s, has_begun=has_begun):
        return "the ranks had not begun to train"
    usual_s = USUAL_TIMES * max((one.reading.usual_s for one in heard.values() if one.reading is not None), default=0.0)
    stuck = {rank: one for rank, one in heard.items() if _held_s(one) > STEP_S + usual_s}
    if stuck and asked_s > STEP_S + usual_s:
        return "; ".join(_said(rank, one) for rank, one in sorted(stuck.items()))
    if asked_s > OTHER_S + usual_s:
        return f"the ranks did not come to the end of a step within {asked_s:.0f} s"
    return ""


def is_unbegun_overdue(asked_s: float, *, has_begun: bool) -> bool:
    """Return whether ranks that have nothing to save are waited for no longer. Arguments: see `overdue`."""
    return not has_begun and asked_s > FORMING_S


def paused(saved: int | None, trained: int, what: str = "") -> str:
    """Return what is said of a job that has come to rest.

    Args:
        saved: the step of its last checkpoint; None without one.
        trained: the last step on record.
        what: why the pause has no checkpoint of its own, where it has not.

    >>> paused(6, 6)
    'every process is gone; it goes on from its checkpoint of step 6'
    >>> paused(None, 2, "rank 1 hangs")
    'rank 1 hangs, so the pause did not wait for a checkpoint; every process is gone; it has no checkpoint and begins anew'
    """
    why = f"{what}, so the pause did not wait for a checkpoint; " if what else ""
    if saved is None:
        return f"{why}every process is gone; it has no checkpoint and begins anew"
    again = f", and does the steps up to {trained} again" if trained > saved else ""
    return f"{why}every process is gone; it goes on from its checkpoint of step {saved}{again}"


def _held_s(one: Heard) -> float:
    """Return for how long a rank has surely not come to the end of its step."""
    is_timed = one.reading is not None and not one.reading.is_excused
    return one.ago_s + (one.reading.idle_s if one.reading is not None and is_timed else 0.0)


def _said(rank: int, one: Heard) -> str:
    if one.ago_s > SILENT_S or one.reading is None:
        return f"rank {rank} has not answered for {one.ago_s:.0f} s"
    return f"rank {rank} is at {one.reading.where} for {_held_s(one):.0f} s, in step {one.reading.step + 1}"
