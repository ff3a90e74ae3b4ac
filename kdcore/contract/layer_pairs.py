"""Pairs of feature maps: which map of the student learns from which map of the teacher."""

from dataclasses import dataclass

from kdcore.contract.network_pair import Shapes
from kdcore.errors import ConfigError, NetworkError, did_you_mean

ALL = "all"
MIDDLE = "middle"
LAST = "last"


@dataclass(frozen=True)
class LayerPair:
    """A student tap and the teacher tap that it learns from; written `student:teacher`."""

    student: str
    teacher: str

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


def equal_depth_pairs(student: Shapes, teacher: Shapes) -> tuple[LayerPair, ...]:
    """Pairs every stage of the shallower network with the other's stage of nearest relative depth.

    Stage i of n has relative depth (i + 1) / n, so that the last stages are always a pair.

    Raises:
        NetworkError: one of the networks has no maps.
    """
    for shapes in (student, teacher):
        if not shapes.stages:
            raise NetworkError(
                f"{shapes.network} has no spatial maps; use it with methods that read logits "
                f"or the embedding"
            )
    fewer, more = len(student.stages), len(teacher.stages)
    if fewer > more:
        return tuple(LayerPair(p.teacher, p.student) for p in equal_depth_pairs(teacher, student))
    # Rounds half up: (2ab + c) // 2c is the nearest integer to ab/c.
    partner = [(2 * (i + 1) * more + fewer) // (2 * fewer) - 1 for i in range(fewer)]
    return tuple(
        LayerPair(name, teacher.stages[j]) for name, j in zip(student.stages, partner, strict=True)
    )


def layer_options(student: Shapes, teacher: Shapes) -> tuple[str, ...]:
    """The layer choices that a search tries: all stages, or a pair of nearly equal depth.

    Nearly equal: the stage of equal relative depth, or the one before or after it.
    """
    partner = {pair.student: pair.teacher for pair in equal_depth_pairs(student, teacher)}
    pairs = [
        LayerPair(name, teacher.stages[j])
        for name, stage in partner.items()
        for j in range(len(teacher.stages))
        if abs(j - teacher.stages.index(stage)) <= 1
    ]
    return (ALL, *map(str, pairs))


def resolve_layers(layers: str, student: Shapes, teacher: Shapes) -> tuple[LayerPair, ...]:
    """Turns a layer choice into pairs of taps.

    Args:
        layers: `all` (every stage with the stage of equal relative depth), `middle` or `last` (one
            of those pairs; of an even number, the first of the two in the middle), or pairs
            `student:teacher`, separated by commas, which may name any tap.
        student: the student's shapes.
        teacher: the teacher's shapes.

    Returns:
        The pairs, from image to classifier or in the order given.

    Raises:
        ConfigError: the text has another form, names a tap that its network does not have, or
            lists a pair twice.
        NetworkError: one of the networks has no maps.
    """
    pairs = equal_depth_pairs(student, teacher)
    if layers == ALL:
        return pairs
    if layers == MIDDLE:
        return (pairs[(len(pairs) - 1) // 2],)
    if layers == LAST:
        return pairs[-1:]
    named: list[LayerPair] = []
    for text in layers.split(","):
        names = text.strip().split(":")
        if len(names) != 2:
            raise ConfigError(
                f"layers is {layers!r}, but must be {ALL!r}, {MIDDLE!r}, {LAST!r} or pairs "
                f"'student tap:teacher tap' like {str(pairs[-1])!r}, separated by commas"
            )
        for role, name, shapes in zip(
            ("student", "teacher"), names, (student, teacher), strict=True
        ):
            if name not in shapes.maps:
                raise ConfigError(
                    f"layers is {layers!r}, but the {role} {shapes.network} has no tap {name!r}"
                    f"{did_you_mean(name, shapes.maps)} Its taps: {', '.join(shapes.maps)}"
                )
        pair = LayerPair(*names)
        if pair in named:
            raise ConfigError(
                f"layers is {layers!r}, which lists {str(pair)!r} twice; list each pair once"
            )
        named.append(pair)
    return tuple(named)
