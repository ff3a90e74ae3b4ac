"""Knowledge distillation of image classifiers.

Start reading at `contract/method.py`, then any file of `methods/`, then `training/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcore.data.config import DataConfig
    from kdcore.distillation.config import TermConfig, TrialConfig
    from kdcore.distillation.distill import distill
    from kdcore.distillation.together import distill_together
    from kdcore.errors import KdsearchError, NonFiniteLossError
    from kdcore.networks.classifier import Classifier, load_student
    from kdcore.networks.config import StudentConfig
    from kdcore.teacher.config import EnsembleConfig, TeacherConfig
    from kdcore.teacher_cache.config import CacheConfig
    from kdcore.training.recipe import Recipe
    from kdcore.training.report import EpochReport

__all__ = [
    "CacheConfig",
    "Classifier",
    "DataConfig",
    "EnsembleConfig",
    "EpochReport",
    "KdsearchError",
    "NonFiniteLossError",
    "Recipe",
    "StudentConfig",
    "TeacherConfig",
    "TermConfig",
    "TrialConfig",
    "distill",
    "distill_together",
    "load_student",
]

_HOMES = {
    "CacheConfig": "teacher_cache.config",
    "Classifier": "networks.classifier",
    "DataConfig": "data.config",
    "EnsembleConfig": "teacher.config",
    "EpochReport": "training.report",
    "KdsearchError": "errors",
    "NonFiniteLossError": "errors",
    "Recipe": "training.recipe",
    "StudentConfig": "networks.config",
    "TeacherConfig": "teacher.config",
    "TermConfig": "distillation.config",
    "TrialConfig": "distillation.config",
    "distill": "distillation.distill",
    "distill_together": "distillation.together",
    "load_student": "networks.classifier",
}


def __getattr__(name: str) -> object:
    """Imports a name on first use, so that configurations load without PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
