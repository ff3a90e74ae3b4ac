"""What can be run, but may not give what its user expects."""

from urllib.error import HTTPError
from urllib.request import urlopen

from kdcore.networks.classifier import ClassifierCard
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.asked_points import points_caution
from search.experiment.space.published import accompanied
from search.leaderboard.teacher_lead import known_caution
from search.record.storage import Storage
from search.session.preflight import Plan
from search.session.recipe_checks import redundancies, views_of_one_trial


def cautions(experiment: Experiment) -> list[str]:
    """Those that the experiment alone tells of."""
    search, epochs = experiment.search, experiment.training.epochs
    found = [
        *points_caution(experiment),
        *redundancies(experiment),
        *views_of_one_trial(experiment),
    ]
    for method, published in accompanied(experiment).items():
        others = {name for slot in experiment.objective if method not in slot for name in slot}
        found += [
            f"{method} is published beside {words}, and tried alone here; add a slot with it to "
            f"the objective, [{CONTROL}, {name}]"
            for name, words in published.companions().items()
            if name not in others
        ]
    schedules = {recipe.schedule: None for recipe in experiment.training.variants("schedule")}
    falling = " or ".join(each for each in schedules if each not in ("constant", "wsd"))
    rule = search.rule
    if rule is None or not falling or (first := rule.first_epoch(epochs)) >= epochs:
        return found
    return [
        *found,
        f"training.schedule is {falling} over all {epochs} epochs, but search."
        f"{search.stopping} compares trials from epoch {first} on, when the learning "
        f"rate is still near its peak: this favours settings that learn quickly over those that "
        f"end best. Use training.schedule: wsd with ema_decay, more grace_epochs, or stopping: "
        f"none; kdsearch replay shows what other settings would have cost",
    ]


def teacher_caution(prepared: Plan, storage: Storage) -> list[str]:
    """What earlier searches tell of teachers that are ready: whether their controls reach the best
    of them."""
    scores = {}
    for label, teacher in prepared.teachers.items():
        if not teacher.ready:  # it may be the best
            return []
        card = ClassifierCard.model_validate_json((teacher.folder / "teacher.json").read_bytes())
        score = card.metrics.get(f"heldout_{prepared.experiment.search.metric}")
        if score is None:
            return []
        scores[label] = score
    images = len(prepared.data.heldout)
    caution = known_caution(prepared.experiment, scores, images, storage)
    return [caution] if caution else []


def idle_gpus(experiment: Experiment, gpus: int, place: str) -> list[str]:
    """What trials leave unused, as their user wants it; no caution.

    Args:
        experiment: what a trial occupies.
        gpus: that are there.
        place: where, as `this machine`.
    """
    resources = experiment.resources
    if not gpus or resources.gpus or not resources.is_decided:
        return []
    which = f"{gpus} GPUs, which stay" if gpus > 1 else "1 GPU, which stays"
    return [f"idle     {place} has {which} idle, as resources.gpus is 0"]


def tracking_caution(uri: str | None) -> list[str]:
    """What to expect of a tracking server that does not answer."""
    if uri is None or not uri.startswith("http"):
        return []
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return []
    except HTTPError as error:
        if error.code in (401, 403):  # it is there; the clients have its password
            return []
        reason = str(error)
    except (OSError, ValueError) as error:
        reason = str(error)
    return [
        f"MLflow at {uri} does not answer ({reason}): the search would run, and its entries would "
        f"wait on disk"
    ]
