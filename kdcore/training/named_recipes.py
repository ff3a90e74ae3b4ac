"""Recipes with a name: the keys that stand for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe that is known by its name.

    Args:
        description: where it comes from, and what to know about it.
        keys: of `kdcore.Recipe`, all that define it.
    """

    description: str
    keys: Mapping[str, Any]


NAMED_RECIPES: Mapping[str, NamedRecipe] = MappingProxyType(
    {
        "cifar_240": NamedRecipe(
            "CIFAR-100 in RepDistiller and mdistiller. Their MobileNets and ShuffleNets train with "
            "`learning_rate: 0.01`",
            {
                "epochs": 240,
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "step",
                "milestones": (150, 180, 210),
                "gamma": 0.1,
            },
        ),
        "imagenet_100": NamedRecipe(
            "ImageNet in the field's repositories",
            {
                "epochs": 100,
                "batch_size": 256,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "schedule": "step",
                "milestones": (30, 60, 90),
                "gamma": 0.1,
            },
        ),
        "quick": NamedRecipe(
            "a first look at small images, on a CPU; no published one",
            {
                "epochs": 15,
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "cosine",
                "warmup_epochs": 1,
            },
        ),
    }
)
