"""A classifier: a backbone behind its normalisation; and how it is saved."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.names import own_digests
from kdcore.backbones.normalization import Normalization
from kdcore.backbones.parts import head_of
from kdcore.backbones.probe import Probe, probe
from kdcore.contract import plugged
from kdcore.contract.plugin import Kind
from kdcore.contract.plugin_faults import beat
from kdcore.contract.taps import Mixed, Tap, Taps
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.image_data import ImageData
from kdcore.errors import WeightsError
from kdcore.operations.labels import label_loss


class ClassifierCard(BaseModel):
    """The JSON file beside the weights.

    Args:
        backbone: name of the network.
        class_names: the K classes, in the order of the logits.
        in_channels: channels of the images.
        image_size: height and width in pixels of the images that it was trained on.
        mean: subtracted from pixels on the scale 0 to 1, per channel.
        std: pixels are then divided by it, per channel.
        metrics: accuracies from 0 to 1, losses in nats.
        made_by: the configuration that it was trained with.
        start: where the weights came from that it began with, and what became of them; empty for
            fresh ones.
        evaluation: how images of any size were cropped to that size, where not in the usual way.
        own_code: of a user's own network, the digest by its file, or by its module.
        has_head: whether it classifies; else the weights of its classifier are left out, and it
            gives features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    class_names: tuple[str, ...] = Field(min_length=2)
    in_channels: int = Field(ge=1)
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    metrics: dict[str, float] = {}
    made_by: dict[str, JsonValue] = {}
    start: dict[str, JsonValue] = {}
    evaluation: CentreCrop | None = None
    own_code: dict[str, str] = {}
    has_head: bool = True

    @model_validator(mode="after")
    def _one_number_for_each_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise WeightsError(
                f"mean and std have {len(self.mean)} and {len(self.std)} numbers, but in_channels "
                f"is {self.in_channels}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_the_usual_evaluation(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.evaluation in (None, USUAL_CROP):
            content.pop("evaluation", None)
        if not self.own_code:  # a later key
            content.pop("own_code", None)
        if self.has_head:  # likewise
            content.pop("has_head", None)
        return content


class Classifier(nn.Module):
    """A backbone with its normalisation.

    Args:
        backbone: the network.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1, > 0.

    Attributes:
        origin: of the weights that its training begins with; empty for fresh ones.
        has_head: whether it classifies; else it gives features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalization = Normalization(mean, std)
        self.origin: Mapping[str, JsonValue] = {}
        self.has_head = True
        # Not in the state dict: the normalisation belongs to the card, not to the weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalises images, uint8 or floats from 0 to 1."""
        if not torch.compiler.is_compiling():
            beat()
        scaled = images.float()
        if images.dtype == torch.uint8:
            scaled = scaled / 255
        return (scaled - self.mean) / self.std

    def use_batch_statistics(self) -> None:
        """Makes batch norms normalise by the batch, without updating their running statistics."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = True
                module.momentum = 0.0  # running = 1 * running + 0 * batch

    def taps(
        self,
        images: Tensor,
        needs: frozenset[Tap],
        labels: Tensor,
        named: frozenset[str] = frozenset(),
        mixed: Mixed | None = None,
        strong: Tensor | None = None,
    ) -> Taps:
        """Runs the network, once more for each input gradient, and for a second view; see
        `Backbone.taps`.

        Args:
            images: as in `forward`.
            needs: the kinds of output to return.
            labels: [B], int64, for input gradients.
            named: names of taps, as in `Backbone.taps`.
            mixed: the second classes, for input gradients.
            strong: the second views of the images, if their logits are needed.
        """
        if strong is not None:
            taps = self.taps(images, needs, labels, named, mixed)
            return replace(taps, strong_logits=self(strong))
        normalized = self.normalize(images)
        if Tap.INPUT_GRADIENT not in needs:
            return self.backbone.taps(normalized, needs, named)
        taps, gradient = self._with_input_gradient(normalized, needs, labels, named, mixed)
        flipped = None
        if Tap.FLIPPED_INPUT_GRADIENT in needs:
            _, flipped = self._with_input_gradient(
                normalized.flip(3), frozenset(), labels, frozenset(), mixed
            )
        return replace(taps, input_gradient=gradient, flipped_input_gradient=flipped)

    def _with_input_gradient(
        self,
        normalized: Tensor,
        needs: frozenset[Tap],
        labels: Tensor,
        named: frozenset[str],
        mixed: Mixed | None,
    ) -> tuple[Taps, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            pixels = normalized.detach().requires_grad_()
            taps = self.backbone.taps(pixels, needs, named)
            loss = label_loss(taps.logits.float(), labels, mixed, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels, create_graph=differentiable)
        return taps if differentiable else taps.detach(), gradient

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, D], which the last layer reads, for images as in `forward`."""
        return self.backbone.taps(self.normalize(images), frozenset()).embedding

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] for images [B, C, H, W], uint8 or floats from 0 to 1; features [B, D] of a
        network without a head."""
        if not self.has_head:
            return self.embed(images)
        logits: Tensor = self.backbone(self.normalize(images))
        return logits


def build_classifier(
    name: str, data: ImageData, *, seed: int, normalization: Normalization | None = None
) -> Classifier:
    """A network with fresh weights for these images; by default with the data's normalisation."""
    backbone = build_backbone(
        name,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        seed=seed,
        image_size=data.image_size,
    )
    return Classifier(backbone, *(normalization or (data.mean, data.std)))


def describe_classifier(
    classifier: Classifier,
    name: str,
    data: ImageData,
    metrics: dict[str, float],
    made_by: dict[str, JsonValue],
) -> ClassifierCard:
    """The card of a network trained on these images; `name` is the network's, without what a
    training has added to it."""
    return ClassifierCard(
        backbone=name + classifier.backbone.suffix,
        class_names=data.class_names,
        in_channels=data.in_channels,
        image_size=data.image_size,
        mean=classifier.normalization.mean,
        std=classifier.normalization.std,
        metrics=metrics,
        made_by=made_by,
        start=dict(classifier.origin),
        evaluation=data.config.centre_crop,
        own_code=own_code(name),
    )


def own_code(name: str) -> dict[str, str]:
    """Of a user's own networks in a network's name, the digest by file or module; none of most."""
    found = {}
    for network, digest in own_digests(name).items():
        plugin = plugged.plugin_of(Kind.BACKBONES, network)
        found[plugin.file if plugin else f"the installed package of {network}"] = digest
    return found


def loading(folder: Path | str, name: str) -> str:
    """What loads an exported student of a network, in Python."""
    files = [str(Path(folder, f)) if f.endswith(".py") else f for f in own_code(name)]
    plugins = f", plugins={json.dumps(files)}" if files else ""
    return f'kdcore.load_student("{folder}"{plugins})'


def save_classifier(folder: Path, role: str, classifier: Classifier, card: ClassifierCard) -> None:
    """Writes `<role>.safetensors` and `<role>.json`, each atomically.

    Args:
        folder: created if missing.
        role: `student` or `teacher`.
        classifier: its backbone's weights are saved, without auxiliary classifiers, and without
            the head if the card says so.
        card: content of the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out = frozenset[str]() if card.has_head else head_of(card.backbone)
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in classifier.backbone.state_dict().items()
        if not name.startswith("auxiliary.") and name not in left_out
    }
    partial = folder / f".{role}.partial"
    # Safetensors' own files are readable by their user alone; these are the folder's other files.
    partial.write_bytes(save(state))
    os.replace(partial, folder / f"{role}.safetensors")
    partial.write_text(card.model_dump_json(indent=2) + "\n")
    os.replace(partial, folder / f"{role}.json")


def load_card(folder: Path, role: str) -> ClassifierCard:
    """Reads `<role>.json`.

    Raises:
        FileNotFoundError: the file is missing.
        WeightsError: the file is damaged.
    """
    path = folder / f"{role}.json"
    try:
        return ClassifierCard.model_validate_json(path.read_text())
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is damaged: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WeightsError(f"{path} is damaged: {where or 'content'}: {first['msg']}") from None


def load_classifier(folder: Path, role: str) -> Classifier:
    """Loads a saved classifier on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        WeightsError: a file is damaged, or the weights do not fit the card.
    """
    card = load_card(folder, role)
    if card.own_code and sorted(own_digests(card.backbone).values()) != sorted(
        card.own_code.values()
    ):
        needed = ", ".join(f"{file} (digest {code})" for file, code in card.own_code.items())
        named = json.dumps(list(card.own_code))
        raise WeightsError(
            f"{folder / role}.json is of the network {card.backbone}, whose code is not kdsearch's "
            f"own: it needs {needed}. Nothing of it is run unless you name that very file, as "
            f"load_student(folder, plugins={named})"
        )
    weights = folder / f"{role}.safetensors"
    backbone = build_backbone(
        card.backbone,
        num_classes=len(card.class_names),
        in_channels=card.in_channels,
        seed=0,
        image_size=card.image_size,
    )
    backbone.drop_auxiliary()
    own = {} if card.has_head else backbone.state_dict()
    head = {name: own[name] for name in own.keys() & head_of(card.backbone)}
    try:
        backbone.load_state_dict(head | load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{weights} does not fit {card.backbone}: {error}") from None
    classifier = Classifier(backbone, card.mean, card.std).eval()
    classifier.has_head = card.has_head
    return classifier


def load_student(
    folder: str | os.PathLike[str], plugins: Iterable[str | os.PathLike[str]] = ()
) -> Classifier:
    """Loads an exported student, which classifies images, uint8 or floats from 0 to 1; one without
    a head gives their features.

    Nothing is unpickled: weights are in safetensors, the rest in JSON. No code is run that is not
    named here.

    Args:
        folder: contains `student.safetensors` and `student.json`.
        plugins: for a network of your own, its file, or the module of a package in the folder.

    Raises:
        FileNotFoundError: a file is missing.
        WeightsError: a file is damaged, the weights do not fit the card, or the code of the network
            is not named, or is another version than that of the training.
        PluginError: a plugin cannot be imported.
    """
    named = [
        plugged.read_plugin(each, Path() if each.endswith(".py") else Path(folder))
        for each in map(str, plugins)
    ]
    with plugged.declared(named) if named else nullcontext():
        return load_classifier(Path(folder), "student")


def probe_for(network: str, data: ImageData) -> Probe:
    """What `probe` finds of a network for these images and their classes."""
    return probe(
        network,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
    )
