"""What all schemas of an experiment file have in common."""

from pydantic import BaseModel, ConfigDict


class Closed(BaseModel):
    """Keys that are known and legal, and stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
