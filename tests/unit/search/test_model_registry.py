"""Which version of a registered student is the champion."""

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from search.tracking.model_registry import ACCURACY, DIGEST, challenge


def version(number: int, accuracy: float, digest: str = "x") -> ModelVersion:
    tags = [ModelVersionTag(ACCURACY, repr(accuracy)), ModelVersionTag(DIGEST, digest)]
    return ModelVersion("kdsearch-task", str(number), 0, tags=tags)


@pytest.mark.parametrize(
    ("champion", "wins", "words"),
    [
        (None, True, "first champion"),
        (version(1, 0.93), True, "94.00 % on the test split against 93.00 %"),
        (version(1, 0.94), False, "version 1 stays the champion"),
        (version(1, 0.95), False, "version 1 stays the champion"),
        (version(1, 0.10, "y"), False, "test split is another one"),
        (version(2, 0.94), True, "champion already"),
    ],
)
def test_only_the_better_on_the_same_test_split_becomes_the_champion(
    champion: ModelVersion | None, wins: bool, words: str
) -> None:
    better, reason = challenge(champion, version(2, 0.94), {ACCURACY: "0.94", DIGEST: "x"})
    assert better == wins
    assert words in reason
