"""The experiment file: what is refused, and how it is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcore.methods import CATALOGUE
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment, read_experiment, with_budgets
from search.experiment.schema import Resources
from tests.cases import Case

VALID: dict[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"backbone": "resnet20", "training": {"epochs": 2}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 3},
    "search": {"trials": 4},
}


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def problems(folder: Path, changes: dict[str, Any], *overrides: str) -> dict[str, str]:
    with pytest.raises(ExperimentError) as caught:
        read_experiment(write(folder, VALID | changes), overrides)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_a_valid_file_gets_its_name_and_the_defaults(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path, VALID))
    assert experiment.name == "task"
    assert experiment.search.asha is not None
    assert not experiment.resources.is_decided


@pytest.mark.parametrize(
    ("weights", "kept"),
    [("IMAGENET1K_V2", "IMAGENET1K_V2"), ("runs/w.pt", Path("runs/w.pt").absolute())],
)
def test_a_teachers_weights_are_a_file_or_published(
    tmp_path: Path, weights: str, kept: object
) -> None:
    teacher = {"backbone": "torchvision/resnet50", "weights": weights}
    experiment = read_experiment(write(tmp_path, VALID | {"teacher": teacher}))
    assert experiment.teacher_configs["torchvision/resnet50"].weights == kept
    assert parse_experiment(json.loads(experiment.model_dump_json()), "") == experiment


@pytest.mark.parametrize("path", sorted(Path("experiments").glob("*.yaml")), ids=str)
def test_every_experiment_of_the_project_is_valid(path: Path) -> None:
    assert read_experiment(path).name == path.stem


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"sarch": 1}, "sarch", "did you mean 'search'?"),
        ({"search": {"trials": "many"}}, "search.trials", "is 'many', but"),
        ({"search": {"trials": 0}}, "search.trials", "is 0, but"),
        ({"search": {"trials": 4, "sed": 3}}, "search.sed", "did you mean 'seed'?"),
        ({"student": "resnet9"}, "student", "did you mean 'resnet"),
        ({"confirm": {"seeds": 1}}, "confirm.seeds", "is 1, but"),
        ({"confirm": {"tops": 3}}, "confirm.tops", "did you mean 'top'?"),
        ({"licences": {"code": "MIT"}}, "licences.code", "Known here: data, teacher, student"),
        ({"objective": [["none", "kdd"]]}, "objective.0.1", "did you mean 'kd'?"),
        ({"objective": [["none"]]}, "objective", "needs a method"),
        ({"objective": [["kd"], ["kd"]]}, "objective", "'kd' is listed twice"),
        ({"objective": []}, "objective", "at least 1 item"),
        ({"data": {"name": "digit"}}, "data.name", "did you mean 'digits'?"),
        ({"data": {}}, "data.name", "is missing"),
        ({"teacher": {"backbone": "resnet20"}}, "teacher", "neither is given"),
        ({"training": {"epochs": 3, "learning_rate": -1}}, "training.learning_rate", "is -1, but"),
        (
            {"training": {"epochs": 3, "learning_rate": {"low": 2, "high": 1}}},
            "training.learning_rate",
            "must be below high",
        ),
        ({"training": {"epochs": float("nan")}}, "training.epochs", "nan"),
        ({"training": {"recipe": "quik"}}, "training", "did you mean 'quick'?"),
        ({"training": {"recpe": "quick", "epochs": 3}}, "training.recpe", "did you mean 'recipe'?"),
        (
            {"teacher": {"backbone": "resnet20", "training": {"recipe": "cifar"}}},
            "teacher.training",
            "unknown recipe 'cifar'",
        ),
        ({"training": {"epochs": 3, "milestones": [2]}}, "training", "only schedule step uses it"),
        (
            {
                "training": {
                    "epochs": 3,
                    "learning_rate": {"low": 0.01, "high": 0.1},
                    "minimum_learning_rate": 0.05,
                }
            },
            "training",
            "must be below learning_rate, which is 0.01",
        ),
        ({"search": {"trials": 4, "asha": {"grace_epochs": 9}}}, "", "must be at most"),
        ({"search": {"trials": 4, "sampler": "tpee"}}, "search.sampler", "is 'tpee', but"),
        ({"search": {"trials": 4, "grid_steps": 3}}, "search", "only sampler grid uses it"),
        (
            {"search": {"trials": 4, "sampler": "grid", "grid_steps": 1}},
            "search.grid_steps",
            "is 1, but",
        ),
        (
            {"search": {"trials": 4, "sampler": "qmc", "warm_start": ["a"]}},
            "search",
            "warm_start is ['a'], but sampler qmc learns from no trial",
        ),
        ({"search": {"trials": 4, "stopping": "ash"}}, "search.stopping", "is 'ash', but"),
        (
            {"search": {"trials": 4, "stopping": "asha", "asha": None}},
            "search",
            "stopping is asha, but asha is null; leave one of them out",
        ),
        (
            {"search": {"trials": 4, "stopping": "median", "asha": {"reduction": 2}}},
            "search",
            "asha is given, but stopping is median, which does not use it; leave asha out, or set",
        ),
        (
            {"search": {"trials": 4, "hyperband": {"reduction": 2}}},
            "search",
            "hyperband is given, but stopping is asha",
        ),
        (
            {"search": {"trials": 4, "asha": None, "median": {}}},
            "search",
            "median is given, but stopping is none",
        ),
        (
            {"search": {"trials": 4, "stopping": "hyperband", "hyperband": {"reduction": 1.5}}},
            "search.hyperband.reduction",
            "is 1.5, but",
        ),
        (
            {"search": {"trials": 4, "stopping": "hyperband", "hyperband": {"grace": 2}}},
            "search.hyperband.grace",
            "Known here: grace_epochs, among, reduction",
        ),
        (
            {"search": {"trials": 4, "stopping": "median", "median": {"min_trials": 0}}},
            "search.median.min_trials",
            "is 0, but",
        ),
        (
            {"search": {"trials": 4, "stopping": "median", "median": {"grace_epochs": 9}}},
            "",
            "search.median.grace_epochs is 9, but must be at most training.epochs, which is 3",
        ),
        ({"search": {"trials": 4, "points": 3}}, "search.points", "is 3, but"),
        ({"name": "../escape"}, "name", "'../escape'"),
        ({"resources": 3}, "resources", "is 3, but must be auto, or keys like {cpus: 4, gpus: 1}"),
        ({"resources": "automatic"}, "resources", "is 'automatic', but must be auto, or keys"),
        ({"resources": {"gpus": -1}}, "resources.gpus", "is -1, but"),
        ({"resources": {"cpus": 0}}, "resources.cpus", "is 0, but"),
        ({"resources": {"gpu": 1}}, "resources.gpu", "did you mean 'gpus'?"),
        ({"resources": {"workers": 0}}, "resources.workers", "is 0, but"),
        (
            {"resources": {"workers": 4, "gpus": 0.5}},
            "resources",
            "gpus is 0.5, but 4 workers need a whole GPU each; set it to 1, or to 0 for the CPU",
        ),
        (
            {"resources": {"workers": 40}},
            "",
            "training.batch_size is 64, but 40 workers need at least 80, two images each",
        ),
        (
            {
                "resources": {"workers": 8},
                "training": {"epochs": 3, "batch_size": [64, 8]},
            },
            "",
            "training.batch_size is 8, but 8 workers need at least 16",
        ),
        (
            {
                "resources": {"workers": 2},
                "training": {"epochs": 3, "cuda_graph": True},
            },
            "",
            "cuda_graph is true, but 2 workers exchange gradients",
        ),
        (
            {
                "resources": {"workers": 8, "gpus": 1},
                "teacher": {"backbone": "resnet14", "training": {"epochs": 2, "batch_size": 8}},
            },
            "",
            "teacher.training.batch_size is 8, but 8 workers need at least 16",
        ),
        (
            {"training": {"epochs": 3, "sync_batch_norms": [True, False]}},
            "training.sync_batch_norms",
            "must be one value: it has an effect only with several resources.workers",
        ),
        (
            {"data": {"name": "digits", "augmentation": "stronk"}},
            "data.augmentation",
            "unknown preset 'stronk'; did you mean 'strong'?",
        ),
        (
            {"data": {"name": "digits", "augmentation": ["mixup", {"flip": {"p": 2}}]}},
            "data.augmentation",
            "step flip: p is 2, but must be less than or equal to 1",
        ),
    ],
)
def test_a_mistake_is_named_with_path_value_and_rule(
    tmp_path: Path, changes: dict[str, Any], key: str, words: str
) -> None:
    found = problems(tmp_path, changes)
    assert list(found) == [key]
    assert words in found[key]


def test_a_method_that_cannot_learn_of_mixed_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = {"data": {"name": "digits", "augmentation": ["cutmix"]}, "objective": [["kd", "crd"]]}
    assert read_experiment(write(tmp_path, VALID | mixed)).data.mixes
    monkeypatch.setattr(CATALOGUE["crd"], "mixing", "refused")
    (message,) = problems(tmp_path, mixed).values()
    assert "objective has crd, but data.augmentation mixes images, of which crd cannot" in message


def test_a_file_has_the_keys_of_its_base_unless_it_gives_others(tmp_path: Path) -> None:
    folder = tmp_path / "bases"
    folder.mkdir()
    lowest = folder / "lowest.yaml"
    lowest.write_text(
        yaml.safe_dump(VALID | {"name": "lowest", "student": ["resnet8", "resnet14"]})
    )
    middle = {"base": "lowest.yaml", "training": {"batch_size": 32}, "search": {"asha": None}}
    (folder / "middle.yaml").write_text(yaml.safe_dump(middle))
    own = {"base": "bases/middle.yaml", "student": ["resnet20"], "training": {"epochs": 5}}
    experiment = read_experiment(write(tmp_path, own), ["training.batch_size=16"])
    expected = VALID | {
        "name": "task",
        "student": ["resnet20"],
        "training": {"epochs": 5, "batch_size": 16},
        "search": {"trials": 4, "asha": None},
    }
    assert experiment == parse_experiment(expected, "")


def test_a_base_that_cannot_be_used_is_named_once_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "circle.yaml").write_text("base: task.yaml")
    (tmp_path / "list.yaml").write_text("[data, teacher]")
    (tmp_path / "broken.yaml").write_text("data: [")
    cases = {
        "none.yaml": ("task.yaml", "base", "none.yaml cannot be read: No such file"),
        "": ("task.yaml", "base", "cannot be read: Is a directory"),
        3: ("task.yaml", "base", "is 3, but must be a file"),
        "task.yaml": ("task.yaml", "base", "leads back here"),
        "circle.yaml": ("circle.yaml", "base", "leads back here"),
        "list.yaml": ("list.yaml", "", "holds list, but must hold keys"),
        "broken.yaml": ("broken.yaml", "", "not valid YAML"),
    }
    for base, (source, key, words) in cases.items():
        with Case(base):
            with pytest.raises(ExperimentError) as caught:
                read_experiment(write(tmp_path, VALID | {"base": base}))
            (problem,) = caught.value.problems
            assert (Path(caught.value.source).name, problem.key) == (source, key)
            assert words in problem.message
    found = problems(tmp_path, {"bse": "task.yaml"})
    assert "did you mean 'base'?" in found["bse"]


def test_a_named_recipe_becomes_plain_keys_for_teacher_and_students(tmp_path: Path) -> None:
    teacher = {"backbone": "resnet20", "training": {"recipe": "cifar_240"}}
    rates = {"low": 0.01, "high": 0.1}
    path = write(
        tmp_path,
        VALID
        | {"teacher": teacher, "training": {"recipe": "imagenet_100", "learning_rate": rates}},
    )
    experiment = read_experiment(path, ["training.epochs=50"])
    (teacher,) = experiment.teacher_configs.values()
    assert teacher.training is not None
    assert teacher.training.milestones == (150, 180, 210)
    assert experiment.training.milestones == (15, 30, 45)
    assert str(experiment.training).startswith("50 epochs, batch 256, sgd 0.01 to 0.1, ")
    stored = yaml.safe_load(yaml.safe_dump(experiment.model_dump(mode="json")))
    assert stored["training"]["milestones"] == [15, 30, 45]
    assert "recipe" not in stored["training"]
    assert "recipe" not in stored["teacher"]["training"]
    assert parse_experiment(stored, "") == experiment


def test_an_experiment_without_later_keys_is_stored_as_before(tmp_path: Path) -> None:
    stored = read_experiment(write(tmp_path, VALID)).model_dump(mode="json")
    assert list(stored["training"]) == [
        "epochs",
        "batch_size",
        "optimizer",
        "momentum",
        "weight_decay",
        "schedule",
        "warmup_epochs",
        "gradient_clip_norm",
        "acceleration",
        "compile",
        "cuda_graph",
        "learning_rate",
    ]
    assert list(stored["search"]) == [
        *("trials", "seed", "asha", "concurrent_trials", "hours", "gpu_hours", "cpu_hours"),
        *("warm_start", "metric", "combinations", "teacher_must_lead"),
    ]


def test_resources_are_the_clusters_unless_gpus_are_given(tmp_path: Path) -> None:
    def stored(*overrides: str, **changes: Any) -> Any:
        experiment = read_experiment(write(tmp_path, VALID | changes), overrides)
        content = json.loads(experiment.model_dump_json())
        again = parse_experiment(content, "")
        assert again.resources.written == experiment.resources.written
        assert again.resources.is_decided == experiment.resources.is_decided
        return content.get("resources", "left out")

    assert stored() == stored(resources="auto") == stored(resources={}) == "left out"
    assert stored("resources=auto", resources={"gpus": 1}) == "left out"
    assert stored("resources.cpus=4", resources="auto") == {"cpus": 4}
    assert stored(resources={"gpus": 0}) == {"cpus": 1, "gpus": 0.0}  # as an earlier version wrote
    assert stored("resources.gpus=0.5", resources="auto") == {"cpus": 1, "gpus": 0.5}
    assert stored(resources={"workers": 1}) == "left out"
    assert stored(resources={"workers": 3}) == {"workers": 3}
    decided = {"cpus": 1, "gpus": 2.0, "workers": 3}
    assert stored("resources.workers=3", resources={"gpus": 2}) == decided
    assert stored("resources.workers=1", resources=decided) == {"cpus": 1, "gpus": 2.0}
    assert Resources(**decided).devices == 6
    assert Resources(cpus=2, gpus=0, workers=3).devices == 6
    assert Resources(workers=3).or_else(Resources(gpus=1)).written == decided | {"gpus": 1.0}


def test_a_budget_is_of_what_trials_use_as_soon_as_that_is_known(tmp_path: Path) -> None:
    gpu_hours, cpu_hours = ({"trials": 4, f"{of}_hours": 1} for of in ("gpu", "cpu"))
    for search, gpus, words in ((gpu_hours, 0, "use no GPU"), (cpu_hours, 0.5, "use GPUs")):
        read_experiment(write(tmp_path, VALID | {"search": search}))
        read_experiment(write(tmp_path, VALID | {"search": search, "resources": {"cpus": 2}}))
        (found,) = problems(tmp_path, {"search": search, "resources": {"gpus": gpus}}).values()
        assert words in found


def test_resources_may_change_when_a_search_goes_on(tmp_path: Path) -> None:
    begun = read_experiment(write(tmp_path, VALID | {"resources": {"cpus": 2, "gpus": 0.25}}))
    assert with_budgets(begun, ["resources.gpus=0.5"]).resources.written == {"cpus": 2, "gpus": 0.5}
    assert not with_budgets(begun, ["resources=auto"]).resources.is_decided
    more = ["resources.workers=2", "resources.gpus=1"]
    assert with_budgets(begun, more).resources == Resources(cpus=2, gpus=1, workers=2)
    with pytest.raises(ExperimentError, match="only budgets and resources can change"):
        with_budgets(begun, ["seed=1"])


def test_a_rule_of_early_stopping_is_named_or_known_by_its_settings(tmp_path: Path) -> None:
    asha = {"grace_epochs": 2, "reduction": 2.0}
    for given, name, written in (
        ({}, "asha", {"asha": {"grace_epochs": None, "reduction": 2.0}}),
        ({"stopping": "asha"}, "asha", {"asha": {"grace_epochs": None, "reduction": 2.0}}),
        ({"asha": {"grace_epochs": 2}}, "asha", {"asha": asha}),
        ({"asha": {"grace_epochs": 2}, "stopping": "asha"}, "asha", {"asha": asha}),
        ({"asha": None}, "none", {"asha": None}),
        ({"stopping": "none"}, "none", {"asha": None}),
        (
            {"stopping": "hyperband"},
            "hyperband",
            {
                "stopping": "hyperband",
                "asha": None,
                "hyperband": {"grace_epochs": 1, "reduction": 3.0},
            },
        ),
        (
            {"stopping": "median", "asha": None, "median": {"min_trials": 2}},
            "median",
            {"stopping": "median", "asha": None, "median": {"grace_epochs": None, "min_trials": 2}},
        ),
    ):
        with Case(given):
            search = read_experiment(write(tmp_path, VALID | {"search": {"trials": 4, **given}}))
            assert search.search.stopping == name
            stored = json.loads(search.model_dump_json())
            keys = ("stopping", "asha", "hyperband", "median")
            assert {k: v for k, v in stored["search"].items() if k in keys} == written
            assert parse_experiment(stored, "") == search
            rule = search.search.rule
            assert (None if rule is None else type(rule).__name__.lower()) == (
                None if name == "none" else name
            )
    # As a file with settings of ASHA is used with another rule.
    path = write(tmp_path, VALID | {"search": {"trials": 4, "asha": asha}})
    changes = ["search.stopping=median", "search.asha=null"]
    assert read_experiment(path, changes).search.stopping == "median"


def test_all_mistakes_come_at_once_each_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, VALID | {"student": "x", "sarch": 1, "search": {"trials": -1}})
    with pytest.raises(ExperimentError) as caught:
        read_experiment(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1", "not valid YAML"), ("- 1", "holds list"), ("", "holds NoneType")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=words):
        read_experiment(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_experiment(tmp_path / "absent.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(f"data: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ExperimentError, match="not valid YAML"):
        read_experiment(path)
    assert not (tmp_path / "made").exists()


def test_overrides_set_keys_at_any_depth(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    experiment = read_experiment(
        path,
        ["search.trials=9", "training.learning_rate=1e-2", "narrow.kd.temperature=[2, 8]"],
    )
    assert experiment.search.trials == 9
    assert experiment.training.learning_rate == 0.01
    assert experiment.narrow == {"kd.temperature": (2, 8)}


@pytest.mark.parametrize("override", ["search.trials", "=3", "student.depth=3", "search.trials=[1"])
def test_an_override_of_another_form_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ExperimentError, match="--set"):
        read_experiment(write(tmp_path, VALID), [override])


def test_an_override_with_a_wrong_value_is_told_like_one_in_the_file(tmp_path: Path) -> None:
    assert "search.trials" in problems(tmp_path, {}, "search.trials=x")


def test_one_student_or_several_may_be_given(tmp_path: Path) -> None:
    assert read_experiment(write(tmp_path, VALID)).students == ("resnet8",)
    several = VALID | {"student": ["resnet8", "resnet14"]}
    assert read_experiment(write(tmp_path, several)).students == ("resnet8", "resnet14")


def test_a_student_with_weights_stands_beside_plain_names(tmp_path: Path) -> None:
    pretrained = {"backbone": "timm/mobilenetv3_small_050", "weights": "DEFAULT"}
    several = VALID | {"student": ["resnet8", pretrained, {"backbone": "resnet14"}]}
    experiment = read_experiment(write(tmp_path, several))
    label = "timm/mobilenetv3_small_050 (DEFAULT)"
    assert experiment.students == ("resnet8", label, "resnet14")
    assert experiment.student_configs[label].weights == "DEFAULT"
    written = json.loads(experiment.model_dump_json())
    assert written["student"] == ["resnet8", pretrained, "resnet14"]
    assert parse_experiment(written, "") == experiment
    alone = read_experiment(write(tmp_path, VALID | {"student": pretrained}))
    assert alone.students == (label,)


def test_what_a_student_knows_is_preserved_only_where_all_know_something(tmp_path: Path) -> None:
    pretrained = {"backbone": "resnet14", "weights": "w.pt"}
    training = {"epochs": 3, "frozen_stages": 1}
    found = problems(tmp_path, {"student": [pretrained, "resnet8"], "training": training})
    assert found[""].startswith("training.frozen_stages is 1, but student resnet8 begins with")
    content = VALID | {"student": pretrained, "training": training}
    assert read_experiment(write(tmp_path, content)).training.frozen_stages == 1


@pytest.mark.parametrize(
    ("student", "key", "message"),
    [
        ("resnet9", "student", "unknown backbone 'resnet9'; did you mean"),
        (["resnet8", "resnet9"], "student.1", "unknown backbone 'resnet9'; did you mean"),
        (["resnet8", "resnet8"], "student", "['resnet8', 'resnet8'], but lists a student twice"),
        ([], "student", "is [], but it should have at least 1 item"),
        (8, "student", "is 8, but must be a network's name, or a mapping with backbone and"),
        ({"weights": "w.pt"}, "student.backbone", "is missing"),
        ({"backbone": "resnet9"}, "student.backbone", "did you mean 'resnet"),
        (
            {"backbone": "resnet8", "weigths": "w.pt"},
            "student.weigths",
            "did you mean 'weights'? Known here: backbone, weights",
        ),
        (
            [{"backbone": "resnet8", "weights": f"{folder}/best.pt"} for folder in ("a", "b")],
            "student",
            "has two students called 'resnet8 (best.pt)'; give the weights of one another name",
        ),
    ],
)
def test_a_wrong_student_is_told_with_its_place(
    tmp_path: Path, student: object, key: str, message: str
) -> None:
    found = problems(tmp_path, {"student": student})
    assert list(found) == [key]
    assert message in found[key]
