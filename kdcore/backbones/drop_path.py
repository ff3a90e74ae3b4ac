"""Stochastic depth: Huang et al., 2016, arXiv:1603.09382."""

from collections.abc import Sequence

from torch import Tensor, nn

from kdcore.errors import NetworkError


class DropPath(nn.Module):
    """Drops a residual branch of single images in training; what remains is scaled up for it.

    Args:
        rate: probability that an image's branch is dropped.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] to the same shape; each image's part is 0 or divided by 1 - rate."""
        if not self.training or self.rate == 0:
            return branch
        kept = 1 - self.rate
        shape = (len(branch), *[1] * (branch.ndim - 1))
        return branch * branch.new_empty(shape).bernoulli_(kept).div_(kept)


def rates_by_depth(last: float, blocks: int) -> Sequence[float]:
    """The rate of each block, rising linearly from 0 to that of the last (section 3)."""
    return [last * number / max(1, blocks - 1) for number in range(blocks)]


def check_drop_path(rate: float, blocks: int) -> None:
    """Refuses a rate above 0 for a network without residual blocks.

    Raises:
        NetworkError: it has none.
    """
    if rate and not blocks:
        raise NetworkError(
            f"drop_path is {rate:g}, but the network has no residual branches to drop; leave it out"
        )
