"""Warm-up factors that rise from 0 to 1 over the first epochs of a trial.

Papers count epochs. Here the warm-up is a share of all epochs, so that short trials have one too.
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
