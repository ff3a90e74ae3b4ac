"""What the trials of a search take, in hours and money, beside its budgets."""

from dataclasses import dataclass

from search.experiment.schema import Experiment


@dataclass(frozen=True)
class Spending:
    """What trials take.

    Args:
        hours: by the clock.
        device_hours: GPU-hours or, where trials use no GPU, core-hours.
        money: in the currency of `prices`; 0 without.
    """

    hours: float
    device_hours: float
    money: float

    def in_words(self, experiment: Experiment) -> str:
        """Like `2 h, 8 GPU-hours, 9.60 EUR`."""
        device, prices = "GPU" if experiment.resources.gpus else "CPU", experiment.prices
        words = f"{self.hours:.3g} h, {self.device_hours:.3g} {device}-hours"
        return words if prices is None else f"{words}, {prices.in_words(self.money)}"

    def spent_budgets(self, experiment: Experiment) -> list[str]:
        """The budgets that this reaches, in words."""
        search, prices = experiment.search, experiment.prices
        budgets = (
            ("hours", search.hours, self.hours),
            ("GPU-hours", search.gpu_hours, self.device_hours),
            ("CPU-hours", search.cpu_hours, self.device_hours),
            ("" if prices is None else prices.currency, search.budget, self.money),
        )
        return [
            f"{limit:g} {unit}"
            for unit, limit, used in budgets
            if limit is not None and used >= limit
        ]
