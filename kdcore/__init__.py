"""Distilling a small vision network from a big one.

Read `method.py` first (the contract of a method), then one file of `methods/`, then `training.py`.
"""

from kdcore.classifier import Classifier, load_student
from kdcore.data import DataConfig
from kdcore.distillation import TermConfig, TrialConfig, distill
from kdcore.teacher import TeacherConfig
from kdcore.teacher_cache import CacheConfig
from kdcore.training import EpochReport, NonFiniteLossError, Recipe

__all__ = [
    "CacheConfig",
    "Classifier",
    "DataConfig",
    "EpochReport",
    "NonFiniteLossError",
    "Recipe",
    "TeacherConfig",
    "TermConfig",
    "TrialConfig",
    "distill",
    "load_student",
]
