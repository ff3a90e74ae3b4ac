"""CIFAR-10: 60,000 photographs, 32x32, in 10 classes.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

from kdcore.data.cifar import cifar_source

SOURCE = cifar_source(
    "CIFAR-10",
    "CIFAR10",
    (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    below="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    labels="labels",
)
