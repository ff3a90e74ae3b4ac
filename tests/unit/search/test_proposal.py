"""The first experiment that `kdsearch init` proposes: what it finds, its rules, its messages."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import ResNet18_Weights
from typer.testing import CliRunner

from kdcore.errors import DataError, KdsearchError
from search.cli.app import app
from search.experiment.proposal import pretrained
from search.experiment.proposal.images import FoundImages, keys_for, look_at
from search.experiment.proposal.machine import Machine, this_machine
from search.experiment.proposal.rules import Cost, Proposal
from search.experiment.proposal.written import Line, as_tree, as_yaml
from search.experiment.reading import parse_experiment, read_experiment
from search.experiment.schema import Experiment
from tests.cases import Case
from tests.unit.kdcore.photographs import encoded, photograph, rows_of, write_folders, write_parquet

LAPTOP = Machine(cores=4, memory_bytes=16 * 2**30)
STATION = Machine(cores=16, memory_bytes=64 * 2**30, gpus=2, gpu="NVIDIA H200")

# Million multiply-adds at 32x32, of ImageNet's networks at 224x224.
_MILLIONS = {
    **{"resnet8": 12, "resnet14": 27, "resnet20": 41, "resnet32": 69, "resnet56": 126},
    **{"wrn_16_2": 101, "resnet8x4": 177, "wrn_40_2": 328, "resnet32x4": 1083},
    **{"torchvision/shufflenet_v2_x0_5": 40, "torchvision/mobilenet_v3_small": 56},
    **{"torchvision/shufflenet_v2_x1_0": 144, "torchvision/mobilenet_v2": 300},
    **{"resnet18": 1814, "resnet34": 3663, "resnet50": 4087, "timm/convnext_tiny": 4456},
}


def made_up(name: str, size: tuple[int, int], batch: int, threads: int) -> Cost:
    """A machine on which a million multiply-adds in training take a tenth of a millisecond, and
    two threads are no faster than one."""
    native = 224 if "/" in name or name in ("resnet18", "resnet34", "resnet50") else 32
    millions = _MILLIONS[name] * math.prod(size) / native**2
    return Cost(int(1e6 * millions), batch * millions * 1e-4 / max(1, threads / 2), 2**28)


def found(
    training: int, side: int = 300, classes: int | dict[str, int] = 8, **changes: Any
) -> FoundImages:
    if isinstance(classes, int):
        classes = {f"class {label}": training // classes for label in range(classes)}
    values: dict[str, Any] = {
        "keys": {"name": "image_folder", "root": "/photographs"},
        "classes": classes,
        "test_images": training // 9,
        "height": side,
        "width": side + 40,
        "one_size": False,
        "channels": 3,
        "is_grey": False,
        "any_size": True,
    }
    return FoundImages(**values | changes)


def proposed(
    images: FoundImages, machine: Machine = LAPTOP, hours: float = 2.0
) -> tuple[Experiment, dict[tuple[str, ...], str]]:
    """A proposal as it is read, and the reason of each key."""
    lines = Proposal(images, machine, hours, made_up).lines
    text = as_yaml(["a head"], lines)
    assert yaml.safe_load(text) == as_tree(lines)
    rows = text.splitlines()
    assert rows[0] == "# a head"
    assert all("  # " in row or row.endswith(":") for row in rows[1:]), "each key has its reason"
    experiment = parse_experiment({"name": "task", **as_tree(lines)}, "")
    return experiment, {line.path: line.reason for line in lines}


def test_photographs_get_networks_of_imagenet_and_small_images_those_of_cifar() -> None:
    photographs, reasons = proposed(found(4000))
    assert photographs.teacher.backbone.startswith("resnet")
    assert all(name.startswith(("torchvision/", "resnet18")) for name in photographs.students)
    assert reasons["data", "name"].startswith("4,000 training images of 8 classes, 500 each")
    keys = {"name": "cifar10", "root": "/cifar"}
    cifar, reasons = proposed(found(50_000, keys=keys, height=32, width=32, any_size=False))
    assert cifar.data.image_size is None
    assert cifar.teacher.backbone in ("resnet32", "resnet56", "resnet8x4", "wrn_40_2", "resnet32x4")
    assert "CIFAR's literature" in reasons["teacher", "backbone"]


def test_a_student_has_at_most_a_quarter_of_its_teachers_multiply_adds() -> None:
    for number, (images, machine) in enumerate(
        ((found(800), LAPTOP), (found(4000), LAPTOP), (found(60_000, 32), STATION))
    ):
        with Case(number):
            experiment, _ = proposed(images, machine)
            size = experiment.data.image_size or (32, 32)
            teacher = made_up(experiment.teachers[0], size, 64, 1).multiply_adds
            for student in experiment.students:
                assert made_up(student, size, 64, 1).multiply_adds <= 0.25 * teacher


def test_more_time_gives_larger_images_or_networks_and_never_fewer() -> None:
    costs = []
    for hours in (0.2, 1.0, 10.0, 100.0):
        experiment, _ = proposed(found(4000), hours=hours)
        assert experiment.data.image_size is not None
        costs.append(made_up(experiment.teachers[0], experiment.data.image_size, 64, 1).seconds)
        assert experiment.search.hours == pytest.approx(0.75 * hours, rel=0.1)
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_time_that_is_left_makes_training_longer(tmp_path: Path) -> None:
    networks = at_hand(tmp_path, resnet50=3, resnet18=1, resnet34=2)
    for known, most in (((), 100), (networks[:1], 60), (networks, 60)):
        before = (0, 0)
        for hours in (0.5, 1.0, 5.0, 1000.0):
            with Case(f"{len(known)} pretrained, {hours} h"):
                lines = Proposal(found(4000, 64), LAPTOP, hours, made_up, known).lines
                (budget,) = (each for each in lines if each.path == ("search", "hours"))
                needed = float(budget.reason.partition("they take ")[2].removesuffix(" h"))
                assert needed <= budget.value, "no trial is cut off by the budget"
                tree = as_tree(lines)
                teachers = tree["teacher"].get("ensemble", [tree["teacher"]])
                (taught,) = {each["training"]["epochs"] for each in teachers}
                epochs = tree["training"]["epochs"]
                assert epochs <= most
                assert taught <= 2 * epochs
                if known:
                    assert epochs <= taught, "who was trained shorter has little to teach"
                elif hours > 0.5:
                    assert before <= (epochs, taught)
                before = epochs, taught
        assert before == (most, 2 * most), "no longer than helps"


def test_images_are_never_enlarged_and_left_out_only_where_time_is_short() -> None:
    for side, hours, size in ((300, 1000.0, 224), (100, 1000.0, 96), (20, 1000.0, 20)):
        with Case(side):
            experiment, reasons = proposed(found(4000, side), hours=hours)
            assert experiment.data.image_size == (size, size)
            assert experiment.data.train_images is None
            assert "not above that of the median" in reasons["data", "image_size"]
    short, reasons = proposed(found(1_000_000), hours=1.0)
    assert short.data.image_size == (32, 32)
    assert "larger ones would not be done in time" in reasons["data", "image_size"]
    assert short.data.train_images is not None
    assert 64 <= short.data.train_images < 1_000_000


def test_enough_images_are_held_out_to_rank_trials_but_not_too_many() -> None:
    for number, (images, share) in enumerate(
        ((104, 0.25), (2_000, 0.25), (4_000, 0.13), (5_000, 0.1), (100_000, 0.1))
    ):
        with Case(number):
            experiment, reasons = proposed(found(images))
            assert experiment.data.heldout_fraction == share
            assert f"{round(share * images):,} images" in reasons["data", "heldout_fraction"]
    _, reasons = proposed(found(5_000))
    assert "one standard error of 80 % is 1.8 points" in reasons["data", "heldout_fraction"]


def test_even_very_few_images_make_steps_and_an_experiment() -> None:
    for images, classes in ((6, 2), (20, 2), (100, 5), (3_000, 8)):
        with Case(images):
            experiment, _ = proposed(found(images, classes=classes))
            training = images - round(experiment.data.heldout_fraction * images)
            assert 2 <= experiment.training.batch_size <= training
            assert experiment.training.learning_rate == pytest.approx(
                0.05 * experiment.training.batch_size / 64
            )


def test_colours_vary_where_an_image_is_seen_often() -> None:
    for images, preset in ((3_000, "imagenet"), (10_000, "basic")):
        experiment, reasons = proposed(found(images))
        written = experiment.model_dump(mode="json")["data"]
        assert written.get("augmentation", "basic") == preset
        assert reasons["data", "augmentation"]


def test_unequal_classes_are_ranked_by_balanced_accuracy() -> None:
    for largest, metric in ((1000, "accuracy"), (1600, "balanced_accuracy")):
        experiment, reasons = proposed(found(1500, classes={"cat": largest, "dog": 500}))
        assert experiment.search.metric == metric
        if metric != "accuracy":
            assert "3.2 times the images of the smallest" in reasons["search", "metric"]


def test_what_trials_occupy_fits_the_machine() -> None:
    laptop, _ = proposed(found(4000))
    assert (laptop.resources.cpus, laptop.resources.gpus) == (1, 0)
    assert laptop.search.trials == 2 * 5 * len(laptop.students)
    small, _ = proposed(found(4000), Machine(cores=4, memory_bytes=3 * 2**30))
    assert small.resources.cpus == 4, "one at a time is all that fits into the memory"
    station, reasons = proposed(found(4000), STATION)
    assert (station.resources.cpus, station.resources.gpus) == (4, 0.5)
    assert {"at", "crd", "reviewkd"} < set(station.objective[0])
    assert "read maps" in reasons[("objective",)]
    assert "NVIDIA" in str(STATION)
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28


def at_hand(folder: Path, **sizes: int) -> list[pretrained.Pretrained]:
    """Weights files of so many bytes, by network."""
    files = {name: folder / f"{name}.pth" for name in sizes}
    for name, file in files.items():
        file.write_bytes(bytes(sizes[name]))
    return [pretrained.Pretrained(name, str(file), file) for name, file in files.items()]


def test_pretrained_networks_teach_and_learn_photographs(tmp_path: Path) -> None:
    networks = at_hand(tmp_path, resnet50=3, resnet18=1, resnet34=2)
    lines = Proposal(found(4000), LAPTOP, 100.0, made_up, networks).lines
    tree = as_tree(lines)
    teachers = tree["teacher"]["ensemble"]
    assert [each["backbone"] for each in teachers] == ["resnet50", "resnet34", "resnet18"]
    assert teachers[0]["weights"] == str(tmp_path / "resnet50.pth")
    assert tree["student"] == {"backbone": "resnet18", "weights": str(tmp_path / "resnet18.pth")}
    for recipe in (tree["training"], *(each["training"] for each in teachers)):
        assert (recipe["optimizer"], recipe["learning_rate"]) == ("adamw", 1e-3)
    (text,) = (line for line in as_yaml((), lines).splitlines() if "resnet34" in line)
    assert text.startswith("    - {backbone: resnet34, ")
    # Its logits are all that is taught, also where a GPU would pay for maps.
    station = Proposal(found(4000), STATION, 1000.0, made_up, networks)
    assert as_tree(station.lines)["objective"] == [["none", "kd", "dkd", "nkd"]]
    one = as_tree(Proposal(found(4000), LAPTOP, 100.0, made_up, networks[1:2]).lines)
    assert one["teacher"]["backbone"] == one["student"]["backbone"] == "resnet18"
    assert (
        tree["training"]["epochs"]
        < as_tree(Proposal(found(4000), LAPTOP, 100.0, made_up).lines)["training"]["epochs"]
    )
    assert tree["data"]["augmentation"] == "imagenet"
    assert "evaluation" not in tree["data"], "nobody says how they were evaluated"
    parse_experiment({"name": "task", **tree}, "")
    # Little time leaves the smallest, which then is its own teacher.
    hurried = as_tree(Proposal(found(4000), LAPTOP, 0.05, made_up, networks).lines)
    assert hurried["teacher"]["backbone"] == "resnet18"
    assert hurried["student"]["backbone"] == "resnet18"
    assert hurried["data"]["image_size"] == [64, 64]
    small = as_tree(Proposal(found(4000, 40), LAPTOP, 20.0, made_up, networks).lines)
    assert "weights" not in small["teacher"], "they know larger images"


def test_weights_of_a_library_decide_how_photographs_are_evaluated(tmp_path: Path) -> None:
    small = pretrained.Pretrained("torchvision/shufflenet_v2_x0_5", "IMAGENET1K_V1", tmp_path / "a")
    large = pretrained.Pretrained("torchvision/mobilenet_v2", "IMAGENET1K_V2", tmp_path / "b")
    squashed = pretrained.Pretrained("timm/convnext_tiny", "in12k_ft_in1k_384", tmp_path / "c")
    for number, each in enumerate((small, large, squashed), start=1):
        each.file.write_bytes(bytes(number))
    images = found(4000, 200)
    lines = Proposal(images, LAPTOP, 1000.0, made_up, [small, large]).lines
    (line,) = (line for line in lines if line.path == ("data", "evaluation"))
    assert line.value == "weights"
    assert line.reason == (
        "resized to cover 198x198 (bilinear, antialiased), then the centre 192x192; crop_share "
        "0.965517, as weights IMAGENET1K_V2 of torchvision/mobilenet_v2 are evaluated"
    )
    experiment = parse_experiment({"name": "task", **as_tree(lines)}, "")
    assert (experiment.data.evaluation, experiment.data.image_size) == ("weights", (192, 192))
    tree = as_tree(Proposal(images, LAPTOP, 1000.0, made_up, [small, squashed]).lines)
    assert tree["teacher"]["ensemble"][0]["backbone"] == "timm/convnext_tiny"
    assert "evaluation" not in tree["data"], "kdsearch check would refuse it"


def test_values_of_every_kind_are_one_line_of_yaml() -> None:
    lines = [
        Line(("a", "b"), "s3://bucket/a b: c", "x"),
        Line(("a", "c", "d"), [1, "no"], "x"),
        Line(("a", "c", "e"), None, "x"),
        Line(("f",), 0.5, "x"),
    ]
    text = as_yaml(["head"], lines)
    assert yaml.safe_load(text) == as_tree(lines)
    assert len(text.splitlines()) == 1 + 4 + 2


def test_folders_and_parquet_are_told_apart_and_looked_at(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "photographs", {".": 9})
    keys = keys_for(str(folder), None, None, None)
    assert keys == {"name": "image_folder", "root": str(folder)}
    images = look_at(keys, tmp_path)
    assert images.classes == {"cat": 8, "dog": 8, "owl": 8}
    assert images.test_images == 3
    assert 40 <= images.height <= 70
    assert (images.one_size, images.any_size, images.is_grey) == (False, True, False)
    write_parquet(tmp_path / "table/{}.parquet", rows_of(folder), files=2)
    for where in (tmp_path / "table", tmp_path / "table/0.parquet"):
        keys = keys_for(str(where), None, None, None)
        assert keys == {"name": "parquet", "root": str(where)}
    assert look_at(
        keys_for(str(tmp_path / "table"), None, None, None), tmp_path
    ).classes == dict.fromkeys(("cat", "dog", "owl"), 8)
    digits = look_at(keys_for("digits", None, None, None), tmp_path)
    assert (digits.channels, digits.height, digits.any_size) == (1, 8, False)
    assert digits.training_images + digits.test_images == 1797


def test_small_images_of_one_size_are_decoded_once(tmp_path: Path) -> None:
    for label, name in enumerate(("a", "b")):
        (tmp_path / "icons" / name).mkdir(parents=True)
        for index in range(4):
            image = photograph(index, label).resize((24, 20)).convert("L")
            (tmp_path / f"icons/{name}/{index}.png").write_bytes(encoded(image, "PNG"))
    keys = keys_for(str(tmp_path / "icons"), None, None, None)
    images = look_at(keys, tmp_path)
    assert images.keys == keys | {"augmentation": "pad_crop"}
    assert (images.height, images.width) == (20, 24)
    assert (images.is_grey, images.any_size) == (True, False)
    experiment, reasons = proposed(images)
    assert experiment.data.augmentation == "pad_crop"
    assert "all grey" in reasons["data", "root"]


def parquet_with(path: Path, **columns: Any) -> str:
    table = pa.table({"img": [b"x", b"y"], **columns})
    names = {"info": {"features": {"fine": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    if "fine" in columns:
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, path)
    return str(path)


def test_columns_are_found_where_only_one_can_be_meant(tmp_path: Path) -> None:
    hugging = parquet_with(tmp_path / "a.parquet", fine=[0, 1], coarse=[0, 0])
    found_keys = keys_for(hugging, None, None, None)
    assert (found_keys["image_column"], found_keys["label_column"]) == ("img", "fine")
    plain = parquet_with(tmp_path / "b.parquet", kind=["a", "b"])
    assert keys_for(plain, None, None, None)["label_column"] == "kind"
    several = parquet_with(tmp_path / "c.parquet", kind=["a", "b"], colour=[1, 2])
    refused = "no column 'label', and 2 others that it could be; say which one it is with --label-c"
    with pytest.raises(DataError, match=refused):
        keys_for(several, None, None, None)
    assert keys_for(several, None, None, "colour")["label_column"] == "colour"


def test_what_cannot_be_proposed_for_has_one_clear_message_each(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        for file in files:
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(encoded(photograph(1)))
        return tmp_path / name

    files = [f"{name}/{index}.jpg" for name in ("cat", "dog") for index in range(6)]
    damaged = folder("damaged", *files)
    (damaged / "cat/1.jpg").write_bytes(b"these are no pixels")
    (damaged / "dog/1.jpg").write_bytes(b"")
    (tmp_path / "photo.jpg").write_bytes(b"")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    for where, words in (
        (folder("empty"), "empty is empty, but must have a folder for each class, with its images"),
        (
            folder("flat", "0.jpg", "1.jpg"),
            "flat has 2 images side by side, but must have a folder",
        ),
        (folder("one", "cat/0.jpg"), "has images of one class, 'cat', but a classifier needs at"),
        (damaged, "damaged image .*cat/1.jpg: it is none of JPEG, PNG, WEBP, BMP; replace it, or"),
        (
            folder("bare", "cat/0.jpg", "dog/0.jpg", "owl/0.txt"),
            "owl has no files that end in .jpg",
        ),
        (tmp_path / "photo.jpg", "is a file, but must be a folder or end in .parquet"),
        (tmp_path / "broken.parquet", "broken.parquet cannot be read: "),
        (Path("digit"), "'digit' is neither a folder, a Parquet file nor a data set; did you mean"),
    ):
        with Case(where.name), pytest.raises(KdsearchError, match=words):
            look_at(keys_for(str(where), None, None, None), tmp_path)
    with pytest.raises(DataError, match=r"\(2 of the 12 that were tried\)"):
        look_at(keys_for(str(damaged), None, None, None), tmp_path)
    (tmp_path / "outer/inner/cat").mkdir(parents=True)
    with pytest.raises(DataError, match="has no images, but a folder 'inner'; name that one"):
        keys_for(str(tmp_path / "outer"), None, None, None)
    with pytest.raises(DataError, match="--root is '/x', but belongs to the name of a data set"):
        keys_for(str(damaged), "/x", None, None)
    with pytest.raises(DataError, match="root is missing"):
        look_at(keys_for("mnist", None, None, None), tmp_path)


def test_pretrained_networks_are_found_in_files_and_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert pretrained.cached() == []
    url = ResNet18_Weights.IMAGENET1K_V1.url
    file = tmp_path / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir()
    file.write_bytes(b"")
    (file.parent / "mine.pth").write_bytes(b"")
    snapshot = tmp_path / "hub/models--timm--resnet10t.c3_in1k/snapshots/0123"
    snapshot.mkdir(parents=True)
    assert [each.backbone for each in pretrained.cached()] == ["torchvision/resnet18"]
    (snapshot / "model.safetensors").write_bytes(b"")
    found_ones = [(each.backbone, each.weights) for each in pretrained.cached()]
    assert found_ones == [
        ("timm/resnet10t", "c3_in1k"),
        ("torchvision/resnet18", "IMAGENET1K_V1"),
    ]
    (own,) = pretrained.named([file], ["resnet18"])
    assert (own.backbone, own.weights) == ("resnet18", str(file))
    for weights, names, words in (
        ([file], ["torchvision/vit_b_16"], "torchvision/vit_b_16, which takes images of one size"),
        ([file], [], "given 1 times and --backbone 0 times"),
        ([tmp_path / "x.pth"], ["resnet18"], "x.pth, but there is no such file"),
        ([file], ["resnet81"], "unknown backbone 'resnet81'; did you mean 'resnet8'"),
    ):
        with pytest.raises(KdsearchError, match=words):
            pretrained.named(weights, names)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with photographs; networks are not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.cli.starting._measurement", lambda *found: made_up)
    monkeypatch.setattr("search.experiment.proposal.pretrained.cached", lambda: [])
    return write_folders(tmp_path / "photographs", {".": 5}).parent


def test_init_writes_a_file_that_can_be_read_and_never_overwrites_one(user: Path) -> None:
    def typed(*words: str) -> Any:
        return CliRunner().invoke(app, ["init", "photographs", *words])

    assert typed().exit_code == 0
    experiment = read_experiment(user / "experiment.yaml")
    assert experiment.data.root == user / "photographs"
    first = (user / "experiment.yaml").read_text()
    assert first.startswith("# A first experiment for photographs, written by kdsearch init on ")
    refused = typed("--hours", "9")
    assert isinstance(refused.exception, KdsearchError)
    assert "experiment.yaml is there already; --output names another, --force" in str(
        refused.exception
    )
    assert (user / "experiment.yaml").read_text() == first
    assert typed("--hours", "9", "--force").exit_code == 0
    assert read_experiment(user / "experiment.yaml").search.hours == 6.8
    assert typed("--output", "mine.yaml").exit_code == 0
    assert read_experiment(user / "mine.yaml").name == "mine"
    for words, message in (
        (("--output", "my own.yaml"), "'my own' would be the name of the task"),
        (("--output", "absent/mine.yaml"), "cannot write to absent/mine.yaml"),
        (("--force", "--hours", "0"), "--hours is 0, but must be > 0"),
        (("--force", "--hours", "inf"), "--hours is inf, but must be > 0"),
        (("--force", "--weights", "x.pth"), "each file needs its network"),
    ):
        with Case(*words):
            assert message in str(typed(*words).exception)


def test_init_names_the_pretrained_networks_at_hand(user: Path) -> None:
    weights = user / "weights.png"
    Image.new("RGB", (1, 1)).save(weights)
    words = ["init", "photographs", "--weights", "weights.png", "--backbone", "resnet18"]
    assert CliRunner().invoke(app, [*words, "--output", "small.yaml"]).exit_code == 0
    small = (user / "small.yaml").read_text()
    assert "of no use here, as the images are smaller than 64 pixels" in small
    assert "weights" not in yaml.safe_load(small)["teacher"]
    for path in (user / "photographs").glob("*/*"):
        Image.open(path).resize((80, 90)).save(path)
    assert CliRunner().invoke(app, words).exit_code == 0
    text = (user / "experiment.yaml").read_text()
    assert f"# Pretrained, at hand: resnet18, weights {weights}." in text
    tree = yaml.safe_load(text)
    assert tree["teacher"]["weights"] == str(weights)
    assert tree["student"] == {"backbone": "resnet18", "weights": str(weights)}
