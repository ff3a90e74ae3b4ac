"""The optimiser of a run: its groups of parameters, and what of a student stays as it is."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdcore.backbones.tracing.torch_private import MOMENTUM, plain_step
from kdcore.networks.classifier import Classifier
from kdcore.training.lamb import Lamb
from kdcore.training.recipe import Recipe


class SGD(torch.optim.SGD):
    """PyTorch's, without its compiler."""

    step = plain_step(torch.optim.SGD)


class AdamW(torch.optim.AdamW):
    """PyTorch's, without its compiler."""

    step = plain_step(torch.optim.AdamW)


def build_optimizer(
    recipe: Recipe, groups: Sequence[dict[str, Any]], *, captured: bool
) -> torch.optim.Optimizer:
    """The optimiser of a recipe; `captured` if its steps are recorded in a CUDA graph."""
    if recipe.optimizer == "sgd":
        sgd = SGD(
            groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.nesterov, fused=True
        )
        if recipe.momentum > 0:
            # The fused step cannot create momentum for parameters whose first gradient comes later
            # than that of others, as after a preparatory stage. All momentum starts at 0 anyway.
            for parameter in (each for group in groups for each in group["params"]):
                sgd.state[parameter][MOMENTUM] = torch.zeros_like(parameter)
        return sgd
    if recipe.optimizer == "lamb":
        return Lamb(groups, recipe.learning_rate, recipe.betas)
    return AdamW(groups, recipe.learning_rate, recipe.betas, fused=True, capturable=captured)


def freeze(student: Classifier, names: Container[str]) -> list[nn.Module]:
    """Keeps these parameters as they are; returns the modules whose running statistics must stay,
    too, which are in evaluation mode."""
    frozen = set()
    for name, parameter in student.backbone.named_parameters():
        if name in names:
            frozen.add(parameter.requires_grad_(False))
    return [
        module
        for module in student.backbone.modules()
        if list(module.buffers(recurse=False))
        and (own := set(module.parameters(recurse=False)))
        and own <= frozen
    ]


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    undecayed: Container[int],
    factors: Mapping[int, float],
    weight_decay: float,
) -> list[tuple[float, dict[str, Any]]]:
    """Parameters with the same factor on the learning rate and the same decay, with that factor.

    The order is part of a checkpoint. First are those with a factor of 1, which a report has.

    Args:
        parameters: that are trained.
        undecayed: ids of those without weight decay.
        factors: by id; 1 for those left out.
        weight_decay: of all others.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, False): []}
    for parameter in parameters:
        key = factors.get(id(parameter), 1.0), id(parameter) in undecayed
        groups.setdefault(key, []).append(parameter)
    return [
        (
            factor,
            {"params": groups[factor, spared], "weight_decay": 0.0 if spared else weight_decay},
        )
        for factor, spared in sorted(groups, key=lambda key: (key[0] != 1, -key[0], key[1]))
    ]
