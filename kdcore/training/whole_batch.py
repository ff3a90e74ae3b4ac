"""The outputs of networks for the images of a batch that several processes share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from kdcore.contract.method import Method
from kdcore.contract.taps import Tap, Taps
from kdcore.execution.workers import Share, Workers


def whole_taps(
    workers: Workers, share: Share, methods: Sequence[Method], student: Taps, teacher: Taps
) -> tuple[Taps, Taps]:
    """What some methods read of both networks, for the images of all processes, with gradients.

    Args:
        workers: the processes.
        share: of this one.
        methods: which compare the images.
        student: its outputs for this process's images.
        teacher: likewise.

    Returns:
        Outputs that no method reads are left out. Half precision is widened, in which sums over
        processes would lose digits.
    """
    kinds = frozenset[Tap]().union(*(method.needs for method in methods))
    pairs = [pair for method in methods for pair in method.pairs]

    def whole(taps: Taps, names: frozenset[str]) -> Taps:
        def read(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {tap: maps[tap] for tap in maps if tap in names}

        some = replace(taps, maps=read(taps.maps), preactivations=read(taps.preactivations))
        return some.only(kinds).widened().changed(lambda tensor: workers.whole(tensor, share))

    return (
        whole(student, frozenset(pair.student for pair in pairs)),
        whole(teacher, frozenset(pair.teacher for pair in pairs)),
    )
