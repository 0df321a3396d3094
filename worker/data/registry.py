"""From the name in a spec to a data set. Owns the table; its names are those of the catalogue."""

from collections.abc import Callable
from typing import Any

from worker.contract.catalogue import DATASETS
from worker.contract.spec import DataSpec
from worker.data import digits, synthetic
from worker.data.split import Splits
from worker.errors import DataError, blame

BUILDERS: dict[str, Callable[[Any, int], Splits]] = {
    "digits": digits.build,
    "synthetic": synthetic.build,
}


def build_data(spec: DataSpec, seed: int) -> Splits:
    """Return the splits of a data set.

    Raises:
        DataError: it cannot be read.
    """
    with blame(DataError):
        return BUILDERS[spec.name](DATASETS[spec.name].args.model_validate(spec.args), seed)
