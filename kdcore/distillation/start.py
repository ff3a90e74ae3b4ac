"""What a network begins with and what of it is trained, in words, before anything is trained."""

from kdcore.backbones.names import library_name
from kdcore.data.image_data import ImageData
from kdcore.networks.config import StudentConfig
from kdcore.networks.initial_weights import check_classes, expected_fit, initial_weights
from kdcore.teacher.config import TeacherConfig
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.recipe import BaseRecipe


def start_in_words(
    config: TeacherConfig | StudentConfig, recipe: BaseRecipe | None, data: ImageData
) -> str:
    """What will be kept, replaced, adapted and trained; files are read, published weights are not
    fetched.

    Args:
        config: the network.
        recipe: of its training; None for a teacher that is not trained.
        data: the images.

    Returns:
        The words; empty for fresh weights.

    Raises:
        WeightsError: the weights are missing or damaged, or do not fit.
        ConfigError: the recipe does not fit the network.
    """
    words = []
    judged = data.config.judge is not None and isinstance(config, TeacherConfig)
    if config.weights is not None:
        weights = initial_weights(config.backbone, config.weights)
        new_parts = recipe is not None or judged
        if not new_parts:
            check_classes(weights, data)
        fit = expected_fit(config.backbone, weights, data, trained=new_parts)
        words.append(f"{weights.words}: {fit}")
        if data.in_channels == 1 and library_name(config.backbone) is not None:
            words.append("grey images are repeated for three channels")
    if recipe is not None:
        tuning = fine_tuning(recipe, config.backbone)
        if words:
            words.append(f"trained: {tuning.words}")
    if judged:
        words.append("its head becomes a linear probe")
    return "; ".join(words)
