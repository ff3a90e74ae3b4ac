"""A network whose last map goes through a projector to the classifier of another, its teacher.

Chen, Mei, Zhang, Wang, Feng and Chen, CVPR 2022, arXiv:2203.14001.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone, spatial_mean
from kdcore.backbones.names import ReusedName, reused_name
from kdcore.contract.network_pair import Shapes
from kdcore.contract.taps import Tap, TapInfo, Taps
from kdcore.errors import NetworkError

# By how much the projector's 3x3 convolution is narrower than its output, the paper's r.
_REDUCTION = 2


def _layer(channels: int, width: int, side: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, side, padding=side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


class ReusedClassifier(Backbone):
    """A body, a projector of its last map to the maps of a teacher, and the teacher's classifier,
    which is not trained. Its embedding is the mean of the projected map.

    Args:
        body: loses its own classifier, and auxiliary ones.
        width: channels of the teacher's map, D.
        pooling: the side of the squares over which the body's map is averaged first.
    """

    def __init__(self, body: Backbone, width: int, pooling: int) -> None:
        super().__init__()
        self.stem, self.stages, self.further = body.stem, body.stages, body.further
        self.num_classes, self.in_channels = body.num_classes, body.in_channels
        self.native_size, self.embedding_width = body.native_size, width
        self.suffix = reused_name("", width, pooling)
        own = body.last_layer()
        body.set_submodule(
            next(path for path, module in body.named_modules() if module is own), nn.Identity()
        )
        body.drop_auxiliary()
        self.body = body
        self.pooling = nn.AvgPool2d(pooling) if pooling > 1 else nn.Identity()
        narrow = max(1, width // _REDUCTION)
        self.projector = nn.Sequential(
            *_layer(body.embedding_width, narrow, 1),
            *_layer(narrow, narrow, 3),
            *_layer(narrow, width, 1),
        )
        self.fc = nn.Linear(width, self.num_classes).requires_grad_(False)

    @torch.no_grad()
    def reuse(self, teacher: Backbone) -> None:
        """Takes over the classifier of a teacher."""
        layer = teacher.last_layer()
        assert layer is not None
        self.fc.weight.copy_(layer.weight.flatten(1))
        if layer.bias is None:
            self.fc.bias.zero_()
        else:
            self.fc.bias.copy_(layer.bias)

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        return self.body.walk(images)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        return self.body.norms()

    def set_drop_path(self, rate: float) -> None:
        self.body.set_drop_path(rate)

    def taps(
        self, images: Tensor, needs: frozenset[Tap], named: frozenset[str] = frozenset()
    ) -> Taps:
        of_body = self.body.taps(images, (needs - {Tap.CLASS_MAPS}) | {Tap.POOLED_MAP}, named)
        assert of_body.pooled_map is not None
        projected: Tensor = self.projector(self.pooling(of_body.pooled_map))
        embedding = spatial_mean(projected)
        return Taps(
            self.classify(embedding),
            embedding,
            of_body.maps,
            of_body.preactivations,
            class_maps=self.class_maps(projected) if Tap.CLASS_MAPS in needs else None,
            pooled_map=projected if Tap.POOLED_MAP in needs else None,
        )


def with_classifier_of(student: Shapes, teacher: Shapes) -> str:
    """The name of a student's network with a projector to a teacher's classifier.

    The student's map is averaged over squares where it is several times as large as the teacher's.

    Raises:
        NetworkError: the classifier of one of the two does not read the mean of a map.
    """
    for role, shapes in (("student", student), ("teacher", teacher)):
        if shapes.class_map is None:
            raise NetworkError(
                f"the student takes over the teacher's classifier, but that of the {role} "
                f"{shapes.network} does not read the mean of a map; use another network, or "
                f"another method"
            )
    assert student.class_map is not None
    assert teacher.class_map is not None
    sides = zip(student.class_map, teacher.class_map, strict=True)
    pooling = max(1, min(own // other for own, other in sides))
    return reused_name(student.network, teacher.embedding_width, pooling)


def reused_constructor(
    name: ReusedName, body: Callable[[int, int], Backbone]
) -> Callable[[int, int], Backbone]:
    """The constructor of such a network, from that of its body."""

    def construct(num_classes: int, in_channels: int) -> Backbone:
        return ReusedClassifier(body(num_classes, in_channels), name.width, name.pooling)

    return construct
