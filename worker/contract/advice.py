"""What a valid spec had better not ask for. Pure; owns the rules of thumb and their figures, which are those of docs/norms.md."""

from worker.contract.catalogue import OWN_STATISTICS_NORMS
from worker.contract.names import is_code
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec

LEAST_SAMPLES_TOGETHER = 16
"""BatchNorm over fewer samples has noisy statistics: training and inference no longer agree."""

_PER_BATCH_KINDS = {"sync_bn", *OWN_STATISTICS_NORMS}


def samples_normalized_together(spec: JobSpec) -> int | None:
    """Return over how many samples one norm of the model takes its statistics, None where samples are normalized one by one.

    A micro-batch of one accumulation step is normalized by itself. Of a range of workers the most count.
    """
    if spec.norm.kind not in _PER_BATCH_KINDS:
        return None
    workers, group = spec.resources.max_workers, spec.norm.group_size
    sharing = 1 if spec.norm.kind in OWN_STATISTICS_NORMS else workers if group == "all" else group
    return spec.batch_size * sharing // (spec.accumulate * workers)


def advise(spec: JobSpec) -> tuple[Problem, ...]:
    """Return what to think twice about: nothing that keeps a job from running."""
    return (*_elastic_statistics(spec), *_too_little(spec))


def _elastic_statistics(spec: JobSpec) -> tuple[Problem, ...]:
    resources = spec.resources
    if spec.norm.kind not in OWN_STATISTICS_NORMS or resources.min_workers == resources.max_workers:
        return ()
    return (
        Problem(
            loc="norm.kind",
            value=f"{spec.norm.kind} on {resources.min_workers} to {resources.max_workers} workers",
            expected="statistics that do not depend on the number of workers",
            remedy="use sync_bn: each rank normalizes its own share, which changes with every resize",
        ),
    )


def _too_little(spec: JobSpec) -> tuple[Problem, ...]:
    if spec.norm.kind == "frozen_bn" and spec.initialize_from is None and not is_code(spec.model.name):
        return (
            Problem(
                loc="norm.kind",
                value="frozen_bn without initialize_from",
                expected="trained statistics: those of a new model normalize nothing",
                remedy="set initialize_from to a checkpoint of a job with sync_bn, or use another kind; see docs/norms.md",
            ),
        )
    together = samples_normalized_together(spec)
    if together is None or together >= LEAST_SAMPLES_TOGETHER:
        return ()
    wider = "norm.kind sync_bn with group_size all, " if together < spec.batch_size // spec.accumulate else ""
    fewer_parts = "a smaller accumulate, " if spec.accumulate > 1 else ""
    return (
        Problem(
            loc="norm.kind",
            value=f"{spec.norm.kind} over {together} samples together",
            expected=f"{LEAST_SAMPLES_TOGETHER} samples or more for BatchNorm",
            remedy=f"use {wider}{fewer_parts}a larger batch_size, or group_norm, which does not depend on the batch; see docs/norms.md",
        ),
    )
