"""The command that writes a first experiment: init."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.options import StorageOption
from search.errors import ExperimentError, Problem, SearchError, StorageError

if TYPE_CHECKING:
    from search.experiment.proposal.rules import Measure


def init(
    where: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_DATASET",
            help="Folder of class folders, Parquet files (folder, file or URI), or a data set.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")
    ] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    hours: Annotated[
        float, typer.Option(metavar="H", help="Time that the search may take, with the teacher's.")
    ] = 2.0,
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of a data set that is named.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of images in Parquet files.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of classes in Parquet files.")
    ] = None,
    weights: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Pretrained weights; may be repeated, with --backbone."),
    ] = [],  # noqa: B006  (typer copies it)
    backbone: Annotated[
        list[str], typer.Option(metavar="NAME", help="The network of these weights.")
    ] = [],  # noqa: B006
    storage: StorageOption = "runs",
) -> None:
    """Write a first experiment for your images, each line with its reason."""
    _check_output(output, force)
    if not 0 < hours < math.inf:
        raise SearchError(f"--hours is {hours:g}, but must be > 0")
    from search.experiment.proposal import images, pretrained
    from search.experiment.proposal.machine import this_machine
    from search.experiment.proposal.rules import Proposal
    from search.experiment.proposal.written import as_yaml
    from search.record.storage import Storage, workspace_of

    at_hand = pretrained.named(weights, backbone) or pretrained.cached()
    keys = images.keys_for(where, root, image_column, label_column)
    found = images.look_at(keys, workspace_of(Storage(storage)))
    machine = this_machine()
    measure = _measurement(found.channels, len(found.classes))
    proposal = Proposal(found, machine, hours, measure, at_hand)
    head = [
        f"A first experiment for {where}, written by kdsearch init on {machine}.",
        f"kdsearch check {output} says what it would do, kdsearch launch {output} does it.",
        *(f"Pretrained, at hand: {each.backbone}, weights {each.weights}." for each in at_hand),
        *([] if proposal.is_fine_tuning else [_NOT_USED if at_hand else _WITHOUT_WEIGHTS]),
        "",
    ]
    try:
        output.write_text(as_yaml(head, proposal.lines))
    except OSError as error:
        raise StorageError(f"cannot write to {output}", error) from None
    print(
        f"wrote {output}, a first experiment of about {hours:g} h\n\nNext:\n"
        f"  kdsearch check {output}     # what it would do\n"
        f"  kdsearch launch {output}"
    )


_WITHOUT_WEIGHTS = (
    "No pretrained network is at hand; with one, --weights FILE --backbone NAME, training begins "
    "far ahead."
)
_NOT_USED = "They are of no use here, as the images are smaller than 64 pixels."


def _check_output(output: Path, force: bool) -> None:
    """Refuses a file that is there, and one whose name could not be that of a task."""
    from search.experiment.reading import check_name

    if output.exists() and not force:
        raise SearchError(f"{output} is there already; --output names another, --force overwrites")
    try:
        check_name(output.stem)
    except ExperimentError:
        message = (
            f"{output.stem!r} would be the name of the task, which has 1-100 letters, digits, '.', "
            f"'_', '-'; choose another"
        )
        raise ExperimentError("--output", [Problem(key="", message=message)]) from None


def _measurement(channels: int, classes: int) -> "Measure":
    """Measures networks on this machine, each once."""
    from functools import cache

    import torch

    from kdcore.backbones.catalogue import build_backbone
    from kdcore.execution.fastest import fastest_training
    from kdcore.networks.measurement import count_multiply_adds
    from kdcore.training.evaluation import default_device
    from search.experiment.proposal.rules import Cost

    @cache
    def measured(name: str, size: tuple[int, int], batch: int, threads: int) -> Cost:
        torch.set_num_threads(threads)
        network = build_backbone(
            name, num_classes=classes, in_channels=channels, seed=0, image_size=size
        )
        multiply_adds = count_multiply_adds(network, size)
        cost = fastest_training(network, size, batch, default_device())
        return Cost(multiply_adds, cost.seconds, cost.memory_bytes)

    return measured
