"""The one pydantic configuration of the contract: frozen values, no unknown keys, finite numbers."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value of the contract. Unknown keys are errors; NaN and infinity are no numbers of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
