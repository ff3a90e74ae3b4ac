"""A student that takes over its teacher's classifier."""

import torch

from kdcore.backbones.names import parsed_reused_name
from kdcore.backbones.reused_classifier import ReusedClassifier
from kdcore.networks.classifier import Classifier


def reuse_classifier(
    student: Classifier, teacher: Classifier, name: str, *, seed: int
) -> Classifier:
    """The student with a fresh projector to the teacher's classifier.

    Args:
        student: becomes part of it, without its own classifier.
        teacher: whose classifier is copied.
        name: of the whole, see `kdcore.backbones.reused_classifier.with_classifier_of`.
        seed: of the projector's initial weights.
    """
    parsed = parsed_reused_name(name)
    assert parsed is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = ReusedClassifier(student.backbone, parsed.width, parsed.pooling)
    backbone.reuse(teacher.backbone)
    whole = Classifier(backbone, *student.normalization)
    whole.origin = student.origin
    return whole
