"""Every method between every two families: does a step on two images work, or why is it refused?

    python -m tests.benchmarks.preflight_matrix [--networks NAME ...] [--methods NAME ...] [--quick]

One or two networks stand for a family. Each pair, as student and teacher, takes the smallest of the
common image sizes that both accept; each method, as published, goes forward and backward in its
preparation (where it has one) and after it, as `kdsearch check` tries it. `--quick` takes each
network as the student of the next in the list alone. A refusal has a reason; whatever else goes
wrong is a crash. The matrix is printed, and `runs/bench/preflight_matrix.json` written; the exit
status is 1 if anything crashed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import cache

import torch
from rich.console import Console
from rich.table import Table

from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.probe import affine_parameters, classifier_weight, probe
from kdcore.contract.network_pair import NetworkPair
from kdcore.distillation.config import TermConfig
from kdcore.distillation.method_check import MethodCheck
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import Classifier
from tests.benchmarks import report

FAMILIES = (
    "resnet8",
    "resnet18",
    "wrn_16_1",
    "vgg8",
    "vgg11",
    "inception_v1",
    "inception_v1_cifar",
    "inception_v2_cifar",
    "bn_inception",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "resnet8+fpn",
    "torchvision/squeezenet1_1",
    "torchvision/swin_t",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_distilled_patch16_224",
)
SIDES = (32, 64, 96, 224)
CLASSES, TRAIN_IMAGES = 10, 40
CRASH = "CRASH"


@cache
def network(name: str, side: int) -> Classifier:
    backbone = build_backbone(
        name, num_classes=CLASSES, in_channels=3, seed=0, image_size=(side, side)
    )
    return Classifier(backbone, (0.5,) * 3, (0.25,) * 3)


@cache
def accepts(name: str, side: int) -> bool:
    try:
        probe(name, num_classes=CLASSES, in_channels=3, image_size=(side, side))
    except ValueError:
        return False
    return True


@cache
def pair_of_networks(student: str, teacher: str, side: int) -> NetworkPair:
    shapes = [
        probe(name, num_classes=CLASSES, in_channels=3, image_size=(side, side)).shapes
        for name in (student, teacher)
    ]
    backbone = network(teacher, side).backbone
    norms, classifier = affine_parameters(backbone), classifier_weight(backbone)
    return NetworkPair(*shapes, torch.arange(TRAIN_IMAGES) % CLASSES, norms, classifier)


def check_of(student: str, teacher: str, side: int) -> MethodCheck:
    shape = (2, 3, side, side)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(2)
    where = pair_of_networks(student, teacher, side)
    return MethodCheck(network(student, side), network(teacher, side), where, images, labels)


def reasons_of(
    student: str, teacher: str, side: int | None, methods: Sequence[str]
) -> dict[str, str]:
    """By method, why it is refused or how it crashed; empty where it works."""
    if side is None:
        return dict.fromkeys(methods, "no common image size")
    check = check_of(student, teacher, side)
    reasons = {}
    for method in methods:
        try:
            term = TermConfig.model_validate({"method": method})
            reasons[method] = check.attempt(term)
        except Exception as error:  # a crash is what this looks for
            reasons[method] = f"{CRASH} {type(error).__name__}: {error}"
    return reasons


def counts(reasons: Sequence[str]) -> str:
    """How many work, are refused and crash, in words."""
    crash = sum(reason.startswith(CRASH) for reason in reasons)
    refused = sum(map(bool, reasons)) - crash
    return f"{len(reasons) - refused - crash} work, {refused} are refused, {crash} crash"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=FAMILIES, metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=list(CATALOGUE), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="each network with the next alone")
    chosen = parser.parse_args()
    console = Console(width=40 + 8 * len(chosen.methods) if not sys.stdout.isatty() else None)
    table = Table("student", "teacher", "image", *chosen.methods, padding=(0, 0))
    reasons: dict[str, int] = {}
    names = list(chosen.networks)
    pairs = [(student, teacher) for teacher in names for student in names]
    if chosen.quick:
        pairs = list(zip(names, names[1:] + names[:1], strict=True))
    with report.Benchmark(
        "preflight_matrix", torch.device("cpu"), torch.get_num_threads()
    ) as benchmark:
        started = time.perf_counter()
        for number, (student, teacher) in enumerate(pairs, start=1):
            benchmark.doing(f"pair {number} of {len(pairs)}: {student} from {teacher}")
            sides = [side for side in SIDES if accepts(student, side) and accepts(teacher, side)]
            found = reasons_of(student, teacher, sides[0] if sides else None, chosen.methods)
            cells = [
                str(reasons.setdefault(reason, len(reasons) + 1)) if reason else "·"
                for reason in found.values()
            ]
            table.add_row(student, teacher, str(sides[0] if sides else "-"), *cells)
            both = {"student": student, "teacher": teacher}
            benchmark.add(
                *(both | {"method": method, "reason": why} for method, why in found.items()),
                shown=f"{student} from {teacher}: {counts(list(found.values()))}",
            )
        console.print(table)
        for reason, number in reasons.items():
            console.print(f"{number}: {reason}", highlight=False, soft_wrap=True)
        every = [row["reason"] for row in benchmark.rows]
        seconds = time.perf_counter() - started
        print(f"{len(every)} combinations in {seconds:.0f} s: {counts(every)}")
    sys.exit(any(reason.startswith(CRASH) for reason in every))


if __name__ == "__main__":
    main()
