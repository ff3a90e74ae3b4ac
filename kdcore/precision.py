"""The precision in which a method's helpers take what the networks show."""

import torch
from torch import Tensor


def like_weights(features: Tensor, weight: Tensor) -> Tensor:
    """Features in the type of the weights that they meet, unless autocast sees to that itself.

    Args:
        features: of any shape and floating type; a network that computes in halves shows halves.
        weight: one of a helper's parameters, which all have one type.

    Returns:
        The same values; under autocast the same tensor.
    """
    if torch.is_autocast_enabled(features.device.type):
        return features
    return features.to(weight.dtype)
