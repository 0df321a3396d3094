"""From the name in a spec to a task. Owns the table; its names are those of the catalogue."""

from collections.abc import Callable
from typing import Any

from worker.contract.catalogue import TASKS
from worker.contract.names import is_code
from worker.contract.spec import TaskSpec
from worker.data.split import Split
from worker.errors import TaskError, blame
from worker.tasks.classification import Classification
from worker.tasks.segmentation import Segmentation
from worker.tasks.task import Task
from worker.user_code import call

BUILDERS: dict[str, Callable[[Any, int], Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}


def build_task(spec: TaskSpec, data: Split) -> Task:
    """Return the task of a spec, for the classes of a data set.

    Raises:
        TaskError: the user's own task cannot be found or made, or is none.
    """
    if is_code(spec.name):
        task = call(spec.name, spec.args, {"num_classes": data.num_classes})
        if not isinstance(task, Task):
            raise TaskError(
                f"{spec.name} made a {type(task).__name__}; expected an object with losses, sums and metrics; docs/tasks.md has an example"
            )
        return task
    with blame(TaskError):
        return BUILDERS[spec.name](TASKS[spec.name].args.model_validate(spec.args), data.num_classes)
