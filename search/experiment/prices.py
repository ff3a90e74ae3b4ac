"""The keys below `prices`: what an hour costs."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from search.experiment.closed import Closed

Price = Annotated[float, Field(ge=0)]


class Prices(Closed):
    """What hours cost, for money beside hours.

    Either that of what trials occupy, `gpu_hour` or `cpu_hour`, is counted, or that of all machines
    of the cluster while trials run, `machine_hour`.

    Args:
        gpu_hour: of a GPU, its cores included; null: trials may use none.
        cpu_hour: of a core, where trials use no GPU; null: they must use one.
        machine_hour: of a machine, by its type; 0 for one that is not to count. The type is what
            Ray knows it by, its label `ray.io/node-group`: a name of `available_node_types` in a
            cluster's file, a group's name on Kubernetes.
        currency: that all prices are in.
    """

    gpu_hour: Price | None = None
    cpu_hour: Price | None = None
    machine_hour: dict[str, Price] = Field(default_factory=dict)
    currency: str = Field("USD", pattern=r"^[A-Za-z]{1,12}$")

    def per_hour(self, devices: float, gpus: float, machines: Sequence[str]) -> float:
        """What an hour costs now.

        Args:
            devices: GPUs or, where trials use none, cores that trials occupy.
            gpus: of a trial.
            machines: the types of the cluster's machines; those without a price are taken for the
                dearest, so that a budget holds.
        """
        if self.machine_hour:
            dearest = max(self.machine_hour.values())
            return sum(self.machine_hour.get(each, dearest) for each in machines)
        return devices * ((self.gpu_hour if gpus else self.cpu_hour) or 0.0)

    def missing(self, gpus: float) -> str:
        """The key of a price that trials with so many GPUs each need; empty if there is one."""
        key = "gpu_hour" if gpus else "cpu_hour"
        return key if not self.machine_hour and getattr(self, key) is None else ""

    def in_words(self, amount: float) -> str:
        """An amount with its currency."""
        return f"{amount:,.2f} {self.currency}" if amount >= 1 else f"{amount:.2g} {self.currency}"

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        of_devices = self.gpu_hour is not None or self.cpu_hour is not None
        if self.machine_hour and of_devices:
            raise ValueError(
                "has machine_hour beside gpu_hour or cpu_hour, which a machine's price includes; "
                "leave one of them out"
            )
        if not self.machine_hour and not of_devices:
            raise ValueError("has no price; give gpu_hour, cpu_hour or machine_hour")
        return self
