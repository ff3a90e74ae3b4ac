"""Stratified selection of images."""

import torch
from torch import Tensor


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Orders images so that every leading part has nearly the class proportions of the whole.

    Within a class the order is random. The r-th of n images of a class is placed at (r + u) / n,
    with one random u per class, so that small parts favour no class.

    Args:
        labels: [N], int64.
        seed: of the order.

    Returns:
        [N], a permutation of 0 to N-1.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels):
        members = shuffled[labels[shuffled] == label]
        ranks = torch.arange(len(members), dtype=torch.float64)
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        place[members] = (ranks + offset) / len(members)
    return place.argsort(stable=True)


def stratified_halves(labels: Tensor, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits positions 0 to N-1 into a stratified part of `first` images, and the rest."""
    order = stratified_order(labels, seed)
    return order[:first].sort().values, order[first:].sort().values


def stratified_mask(labels: Tensor, first: int, seed: int) -> Tensor:
    """Marks a stratified part of `first` images: [N], bool."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[stratified_order(labels, seed)[:first]] = True
    return chosen
