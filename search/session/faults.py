"""What goes wrong in a trial and would again: its own numbers, or a user's own code."""

import torch

from kdcore.contract.plugin_faults import fault_in_plugin
from kdcore.errors import NonFiniteLossError

_OF_THE_MACHINE = (OSError, torch.OutOfMemoryError)


def lasting_fault(error: BaseException) -> str:
    """Why another try would end as this one; empty where it may not."""
    if isinstance(error, NonFiniteLossError):
        return str(error)
    return "" if isinstance(error, _OF_THE_MACHINE) else fault_in_plugin(error)
