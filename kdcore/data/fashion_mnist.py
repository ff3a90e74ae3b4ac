"""Fashion-MNIST: 70,000 photographs of clothes, 28x28, grey. Xiao et al., arXiv:1708.07747."""

from kdcore.data.idx import idx_source

SOURCE = idx_source(
    "Fashion-MNIST",
    "FashionMNIST",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    flip=True,
    hint=(
        " (Debian's package dataset-fashion-mnist installs them in "
        "/usr/share/datasets/fashion-mnist)"
    ),
)
