"""A debug mode in which ranks agree on what they are about to reduce, and a rank that does not come is named instead of waited for.

Owns: what a rank says before a reduction, the comparison, and the error. Does not own the board on which it is said (`collectives.py`).

How it works. Before each reduction of a layer, forward or backward, every rank of the group posts (layer, direction, call number, channels,
dtype) under the number of the reduction, and reads what the others have posted there. Posting is no collective: it never waits for
anybody, so that a rank that is missing can be told from one that is elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from syncbn.collectives import Board, ProcessGroup, WatchedGroup, resolve, sum_over_ranks, unwrap
from syncbn.errors import OptionError, OrderError
from syncbn.family import synchronizes

_GAVE_UP = ", no longer waiting"  # what a rank adds to its text when it raises for want of others
_POLL_S = (0.0005, 0.05)  # the first pause between two looks at the board, and the longest


@contextmanager
def order_checks(module: nn.Module, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Within the block every reduction of every synchronized layer is agreed upon by all ranks of its group before it is started.

    For finding the rank that skips a layer, or the branch that orders them differently: what otherwise hangs, or adds up statistics of
    different layers. Costs some store operations per rank and reduction, and a wait of the host. Not for production, nor for
    torch.compile.

    Args:
        module: the model, or a DistributedDataParallel around it.
        timeout_s: how long a rank waits for the others at a reduction; longer than ranks may be apart, shorter than the timeout of the
            process group.
    Raises:
        OptionError: timeout_s is not positive.
        OrderError: from the layer, or from backward: ranks are at different reductions (on each of these ranks), or some have not come
            (on those that have). Names ranks, layer, direction, call number, channels and dtype. Nothing has been reduced then; the ranks
            are out of step, and training must not go on.

    Collectives: none of its own. Every rank of the layers' groups must be in the block, or in none. Needs the store that the process group
        was made with: where that is a TCPStore and the process that serves it has ended, the error says so.

    >>> from syncbn import SyncBatchNorm
    >>> with order_checks(SyncBatchNorm(3), timeout_s=5.0):
    ...     pass
    """
    if not timeout_s > 0:
        raise OptionError(f"timeout_s {timeout_s} is not positive: expected seconds; pass how far ranks may be apart")
    layers = [(name, layer) for name, layer in unwrap(module).named_modules() if synchronizes(layer)]
    meetings: dict[int, _Meeting] = {}
    with ExitStack() as stack:
        for name, layer in layers:
            group = resolve(layer.__dict__["process_group"])
            if group is not None:
                board = Board(group)
                meeting = meetings.setdefault(board.key, _Meeting(board, timeout_s))
                stack.enter_context(_Guard(name, layer, meeting).attached())
        for meeting in meetings.values():
            meeting.board.open()
        yield


@final
@dataclass(frozen=True)
class _Guard:
    """One layer's watch."""

    name: str
    layer: nn.Module
    meeting: _Meeting

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the watch in the layer's process group, and take it out again."""
        group = self.layer.__dict__["process_group"]
        self.layer.__dict__["process_group"] = WatchedGroup(group, self.reduce)
        try:
            yield
        finally:
            self.layer.__dict__["process_group"] = group

    def reduce(self, vector: Tensor, group: ProcessGroup) -> Tensor:
        """Agree, then sum over ranks. A forward's vector has 2C + 1 numbers, a backward's 2C."""
        direction = "forward" if vector.numel() % 2 else "backward"
        self.meeting.agree(self.name, direction, f"{vector.numel() // 2} channels, {str(vector.dtype).removeprefix('torch.')}")
        return sum_over_ranks(vector, group)


@final
class _Meeting:
    """One group's reductions in one block, numbered."""

    def __init__(self, board: Board, timeout_s: float) -> None:
        self.board, self.timeout_s = board, timeout_s
        self.number = 0
        self.calls: dict[tuple[str, str], int] = {}
        self.last = ""

    def agree(self, layer: str, direction: str, what: str) -> None:
        """Post this rank's next reduction and wait until all have posted the same.

        Raises:
            OrderError: one has posted another, or some have posted nothing in time.
        """
        call = self.calls[layer, direction] = self.calls.get((layer, direction), 0) + 1
        mine = f"the {direction} of layer {layer!r} (call {call}, {what})"
        self.number += 1
        try:
            posted = self._posted(mine)
        except RuntimeError as error:  # whatever a store raises
            raise OrderError(
                f"the store of the process group does not answer at {mine}: {error}: expected it to live as long as the group; "
                "look for what ended the process that serves it, usually rank 0"
            ) from error
        places = {rank: text.removesuffix(_GAVE_UP) for rank, text in posted.items()}
        different = disagreement(places, self.board.ranks)
        if different is None and posted != dict.fromkeys(self.board.ranks, mine):
            self.board.post(self.number, mine + _GAVE_UP)
            gone = [rank for rank, text in posted.items() if text.endswith(_GAVE_UP)]
            raise OrderError(absence(places, self.board.ranks, self.timeout_s, self.last) or _too_late(gone, mine))
        if different is not None:
            raise OrderError(different)
        self.board.clear(self.number - 1)
        self.last = mine

    def _posted(self, mine: str) -> dict[int, str]:
        """What is on the board under this number: once everybody has posted, one differs, or time is up."""
        self.board.post(self.number, mine)
        pause_s, longest_s = _POLL_S
        deadline = time.monotonic() + self.timeout_s
        while True:
            posted = self.board.read(self.number)
            if len(posted) == len(self.board.ranks) or set(posted.values()) != {mine} or time.monotonic() > deadline:
                return posted
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)


def disagreement(posted: dict[int, str], ranks: list[int]) -> str | None:
    """The message about ranks that are at different reductions; None if all that are there agree.

    >>> print(disagreement({0: "layer 'a'", 2: "layer 'b'"}, [0, 1, 2]))  # doctest: +ELLIPSIS
    ranks are at different reductions: rank 0 at layer 'a'; rank 2 at layer 'b'; rank 1 not here yet: expected ...
    """
    if len(set(posted.values())) < 2:
        return None
    by_place: dict[str, list[int]] = {}
    for rank, place in sorted(posted.items()):
        by_place.setdefault(place, []).append(rank)
    listed = [f"{_named(at)} at {place}" for place, at in by_place.items()]
    missing = [rank for rank in ranks if rank not in posted]
    listed += [f"{_named(missing)} not here yet"] if missing else []
    return (
        f"ranks are at different reductions: {'; '.join(listed)}: expected the same layers in the same order on every rank; look for a "
        "branch that depends on the rank or its data, and feed an empty batch instead of skipping a layer"
    )


def absence(posted: dict[int, str], ranks: list[int], timeout_s: float, last: str) -> str | None:
    """The message about ranks that have not come in time; None if all have.

    >>> print(absence({0: "the forward of layer 'a'"}, [0, 1], 5.0, ""))  # doctest: +ELLIPSIS
    rank 1 has not come to the forward of layer 'a' within 5.0 s, rank 0 waits there (nobody has reduced anything before): expected ...
    """
    missing = [rank for rank in ranks if rank not in posted]
    if not missing:
        return None
    before = f"last seen at {last}" if last else "nobody has reduced anything before"
    return (
        f"{_named(missing)} {'has' if len(missing) == 1 else 'have'} not come to {next(iter(posted.values()))} within {timeout_s} s, "
        f"{_named(sorted(posted))} {'waits' if len(posted) == 1 else 'wait'} there ({before}): expected every rank of the group; "
        "look whether it skips the layer, has ended, or is slower than timeout_s"
    )


def _too_late(gone: list[int], mine: str) -> str:
    return (
        f"all ranks have come to {mine}, but {_named(gone)} waited longer than timeout_s and {'has' if len(gone) == 1 else 'have'} raised "
        "an error: expected all to come in time; look for what made the others slow, or raise timeout_s"
    )


def _named(ranks: list[int]) -> str:
    """Ranks in words.

    >>> _named([3]), _named([0, 2])
    ('rank 3', 'ranks 0, 2')
    """
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
