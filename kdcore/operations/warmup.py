"""Factors that rise from nought to 1 over the first epochs of a trial.

Papers count those epochs; here they are a share of the trial's, so that short trials have them.
"""

import math


def linear_warmup(epoch: int, epochs: int, *, share: float) -> float:
    """Rises evenly with each epoch, and stays at 1.

    Args:
        epoch: from 1.
        epochs: of the whole trial.
        share: of the epochs after which 1 is reached, 0 to 1; 0: from the first epoch on.

    Returns:
        Greater than 0, at most 1.
    """
    return min(1.0, epoch / (share * epochs)) if share > 0 else 1.0


def cosine_warmup(epoch: int, epochs: int, *, share: float) -> float:
    """Rises along half a cosine: slowly at first and at last. Arguments as in `linear_ramp`."""
    return 0.5 * (1 - math.cos(math.pi * linear_warmup(epoch, epochs, share=share)))
