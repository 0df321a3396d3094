"""Which checkpoints to delete. Pure; which is the best is said in the contract, because the service must agree."""

from collections.abc import Collection, Mapping

from worker.contract.manifest import Manifest, best_step
from worker.contract.spec import CheckpointSpec


def steps_to_prune(manifests: Mapping[int, Manifest], spec: CheckpointSpec, pinned: Collection[int] = ()) -> list[int]:
    """Return the steps that the rule does not keep, oldest first: not among the newest `keep_last`, not the best, not pinned.

    A pinned checkpoint counts among the newest all the same: pinning an old one must not cost a new one.
    """
    steps = sorted(manifests)
    kept = {*steps[-spec.keep_last :], best_step(manifests.values(), spec.keep_best), *pinned}
    return [step for step in steps if step not in kept]
