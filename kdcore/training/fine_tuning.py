"""Fine-tuning: which parts of a network are trained, and at which share of the learning rate."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdcore.backbones.parts import Parts, parts_of
from kdcore.contract.method import Method
from kdcore.contract.taps import Tap
from kdcore.errors import ConfigError
from kdcore.training.recipe import BaseRecipe

# What depends on the head.
_OF_THE_HEAD = frozenset(
    {
        Tap.LOGITS,
        Tap.STRONG_LOGITS,
        Tap.CLASS_MAPS,
        Tap.INPUT_GRADIENT,
        Tap.FLIPPED_INPUT_GRADIENT,
    }
)


@dataclass(frozen=True)
class FineTuning:
    """How a recipe treats the parts of a network; by default it trains all of them alike.

    Args:
        frozen: names of the parameters that are not trained.
        frozen_taps: names of the maps that therefore stay as they are.
        factors: by name of a parameter, the factor on its learning rate; 1 for those left out.
        head_alone: whether nothing but the head is trained.
        words: what is trained.
    """

    frozen: frozenset[str] = frozenset()
    frozen_taps: frozenset[str] = frozenset()
    factors: Mapping[str, float] = field(default_factory=dict)
    head_alone: bool = False
    words: str = "all of it"

    def refusal(self, method: Method) -> str:
        """Why a method cannot teach a network that is trained like this; empty if it can."""
        if self.head_alone and method.needs and not method.needs & _OF_THE_HEAD:
            read = ", ".join(sorted(tap.value for tap in method.needs))
            return (
                f"it reads {read}, which linear_probe leaves as they are; use a method that reads "
                f"logits, or train more than the head"
            )
        layers = [pair.student for pair in method.pairs]
        if layers and self.frozen_taps.issuperset(layers):
            return (
                f"{', '.join(dict.fromkeys(layers))} of the student is frozen; freeze fewer "
                f"stages, or narrow the method's layers to later ones"
            )
        return ""


def fine_tuning(recipe: BaseRecipe, network: str) -> FineTuning:
    """How a recipe treats the parts of a network.

    Args:
        recipe: of its training.
        network: its name in the catalogue.

    Raises:
        ConfigError: it would freeze more stages than there are, or all of them, or the network has
            no stages.
    """
    if not recipe.is_fine_tuning:
        return FineTuning()
    parts = parts_of(network)
    stages = len(parts.stages)
    if not stages and (recipe.frozen_stages or recipe.layer_decay < 1):
        key = "frozen_stages" if recipe.frozen_stages else "layer_decay"
        raise ConfigError(
            f"training.{key} is {getattr(recipe, key)}, but {network} has no stages; leave it out"
        )
    if recipe.frozen_stages >= max(stages, 1):
        raise ConfigError(
            f"training.frozen_stages is {recipe.frozen_stages}, but {network} has {stages} stages, "
            f"so at most {stages - 1}; linear_probe: true trains the head alone"
        )
    frozen = _frozen(recipe, parts)
    factors = dict.fromkeys(parts.head, recipe.head_learning_rate)
    for name, stage in parts.stage_of.items():
        factors[name] = recipe.layer_decay ** (stages + 1 - stage)
    taps: tuple[str, ...] = ()
    words = "all of it"
    if recipe.linear_probe:
        taps, words = (parts.stem, *parts.stages), "the head alone"
    elif recipe.frozen_stages:
        taps = (parts.stem, *parts.stages[: recipe.frozen_stages])
        words = f"all but {', '.join(taps)}"
    return FineTuning(frozen, frozenset(taps), factors, recipe.linear_probe, words)


def _frozen(recipe: BaseRecipe, parts: Parts) -> frozenset[str]:
    """The names of the parameters that a recipe does not train."""
    if recipe.linear_probe:
        return frozenset(parts.stage_of)
    if not recipe.frozen_stages:
        return frozenset()
    return frozenset(n for n, stage in parts.stage_of.items() if stage <= recipe.frozen_stages)
