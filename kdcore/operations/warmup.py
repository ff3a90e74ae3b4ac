"""Factors that rise from 0 to 1 over the first epochs of a trial, or fall to 0 over the last.

Papers count epochs. Here these are a share of all epochs, so that short trials have them too.
"""

import math


def linear_warmup(epoch: int, epochs: int, *, share: float) -> float:
    """Rises linearly, and then stays at 1.

    Args:
        epoch: from 1.
        epochs: of the whole trial.
        share: of the epochs after which it is 1, 0 to 1; with 0 it is 1 from the first epoch.

    Returns:
        Greater than 0, at most 1.
    """
    return min(1.0, epoch / (share * epochs)) if share > 0 else 1.0


def cosine_warmup(epoch: int, epochs: int, *, share: float) -> float:
    """Rises along half a cosine, slowly at both ends. Arguments as in `linear_warmup`."""
    return 0.5 * (1 - math.cos(math.pi * linear_warmup(epoch, epochs, share=share)))


def cosine_decay(epoch: int, epochs: int, *, start: float) -> float:
    """Stays at 1, and then falls to 0 in the last epoch, along half a cosine.

    Args:
        epoch: from 1.
        epochs: of the whole trial.
        start: share of the epochs after which it falls, 0 to 1; with 1 it never does.

    Returns:
        0 to 1.
    """
    fallen = epoch - start * epochs
    return 0.5 * (1 + math.cos(math.pi * fallen / ((1 - start) * epochs))) if fallen > 0 else 1.0
