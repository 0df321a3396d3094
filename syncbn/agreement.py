"""Whether all ranks hold the same normalization state.

Owns: the comparison and its error. Does not own the gathering (`collectives.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncbn.collectives import ProcessGroup, gather_over_ranks, resolve
from syncbn.errors import OutOfSyncError

_STATE = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")


def assert_synchronized(module: nn.Module, process_group: ProcessGroup | None = None) -> None:
    """Check that every rank holds bit for bit the same parameters and buffers in every batch normalization layer.

    Args:
        module: the model; the same architecture on every rank.
        process_group: ranks to compare; None for all.
    Raises:
        OutOfSyncError: on every rank alike; names each layer and buffer that differs, and the ranks that differ from the first rank.
            NaN is equal to NaN.

    Collectives: two all_gathers (of a length, then of all state in one vector of bytes). Every rank of the group must call. Nothing is sent
        where there is one rank.

    >>> assert_synchronized(nn.BatchNorm2d(8))
    """
    group = resolve(process_group)
    if group is None:
        return
    state = _named_state(module)
    device = next((tensor.device for _, tensor in state), torch.device("cpu"))
    payload = torch.cat([_bytes(tensor) for _, tensor in state]) if state else torch.zeros(0, dtype=torch.uint8)
    lengths_R = gather_over_ranks(torch.tensor([payload.numel()], device=device), group).flatten().tolist()
    if len(set(lengths_R)) > 1:
        raise OutOfSyncError(
            f"ranks hold different amounts of normalization state, {lengths_R} bytes by rank: expected the same layers with the same "
            "dtypes on every rank; build and convert the model in the same way everywhere"
        )
    if not payload.numel():
        return
    gathered_RB = gather_over_ranks(payload.to(device), group).cpu()
    differences = _differences(state, gathered_RB)
    if differences:
        listed = "; ".join(differences[:10]) + ("; ..." if len(differences) > 10 else "")
        raise OutOfSyncError(
            f"{len(differences)} buffers differ between ranks: {listed}: expected every rank "
            "to hold what rank 0 holds; check that all ranks run the same layers, or broadcast the buffers from one rank"
        )


def _named_state(module: nn.Module) -> list[tuple[str, Tensor]]:
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))  # noqa: SLF001
    named = ((f"layer {name!r} {field}", getattr(layer, field)) for name, layer in layers for field in _STATE)
    return [(name, tensor.detach()) for name, tensor in named if tensor is not None]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _differences(state: list[tuple[str, Tensor]], gathered_RB: Tensor) -> list[str]:
    """One line per buffer that some rank holds differently from rank 0."""
    lines, start = [], 0
    for name, tensor in state:
        width = tensor.numel() * tensor.element_size()
        part_RB = gathered_RB[:, start : start + width]
        start += width
        ranks = [rank for rank in range(1, part_RB.shape[0]) if not torch.equal(part_RB[rank], part_RB[0])]
        if ranks:
            lines.append(f"{name} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} differs from rank 0")
    return lines
