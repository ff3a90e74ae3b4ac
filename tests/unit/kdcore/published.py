"""Small data sets in the formats of published ones, as tests write them."""

import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from scipy.io import savemat

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + bytes(
        values.astype(np.uint8).tobytes()
    )


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing: what was served shows in what was read."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a server on this machine shows a folder."""
    handler = partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Images:
    """60 images for training and 20 for the test.

    Args:
        pixels: [80, C, H, W], uint8.
        labels: [80], from 0.
    """

    pixels: np.ndarray
    labels: np.ndarray

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels[:60], self.labels[:60]

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels[60:], self.labels[60:]


def random_images(channels: int, side: int, classes: int) -> Images:
    random = np.random.default_rng(side + classes)
    pixels = random.integers(0, 256, (80, channels, side, side), dtype=np.uint8)
    return Images(pixels, np.arange(80) * 7 % classes)


def python2_batch(pixels: np.ndarray, labels: np.ndarray, key: str) -> bytes:
    """A CIFAR batch as Python 2 pickled it, opcode by opcode: text and bytes are one type."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
        b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    )
    shape = integer(len(pixels)) + integer(3072) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + (integer(0) + b"\x85" + text(b"b") + b"\x87R")
        + (b"(" + integer(1) + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb")
    )
    numbers = b"](" + b"".join(map(integer, labels.tolist())) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key.encode()) + numbers + b"u."


def batch(pixels: np.ndarray, labels: np.ndarray, key: str, protocol: int) -> bytes:
    """A CIFAR batch as Python 3 pickles it."""
    content = {"data": pixels.reshape(-1, 3072), key: labels.tolist(), "batch_label": "a batch"}
    return pickle.dumps(content, protocol)


def write_cifar10(root: Path) -> Images:
    images = random_images(3, 32, 10)
    root.mkdir(parents=True)
    for number in range(5):
        part = slice(12 * number, 12 * number + 12)
        content = python2_batch(images.pixels[part], images.labels[part], "labels")
        (root / f"data_batch_{number + 1}").write_bytes(content)
    (root / "test_batch").write_bytes(python2_batch(*images.test, "labels"))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"] * 10}))
    return images


def write_cifar100(root: Path) -> Images:
    images = random_images(3, 32, 100)
    root.mkdir(parents=True)
    for protocol, name, part in ((2, "train", images.train), (5, "test", images.test)):
        (root / name).write_bytes(batch(*part, "fine_labels", protocol))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": ["x"] * 100}))
    return images


def write_svhn(root: Path) -> Images:
    images = random_images(3, 32, 10)
    root.mkdir(parents=True)
    for name, (pixels, labels) in (("train", images.train), ("test", images.test)):
        content = {
            "X": pixels.transpose(2, 3, 1, 0),
            "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
        }
        savemat(root / f"{name}_32x32.mat", content, do_compression=name == "test")
    return images


def write_stl10(root: Path) -> Images:
    images = random_images(3, 96, 10)
    root.mkdir(parents=True)
    for name, (pixels, labels) in (("train", images.train), ("test", images.test)):
        (root / f"{name}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (root / f"{name}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (root / "unlabeled_X.bin").write_bytes(b"")
    return images


def write_mnist(root: Path) -> Images:
    images = random_images(1, 28, 10)
    root.mkdir(parents=True)
    names = ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS))
    for (first, second), (pixels, labels) in zip(names, (images.train, images.test), strict=True):
        (root / first).write_bytes(idx(pixels[:, 0]))
        (root / second).write_bytes(idx(labels))
    return images


@dataclass(frozen=True)
class Published:
    """How a published data set is written and augmented.

    Args:
        write: into a folder, which it makes.
        below: where torchvision has the files, below a root.
        reader: torchvision's class.
        padding: of its views.
        flip: whether they are mirrored.
    """

    write: Callable[[Path], Images]
    below: str
    reader: str
    padding: int
    flip: bool


PUBLISHED = {
    "cifar10": Published(write_cifar10, "cifar-10-batches-py", "CIFAR10", 4, True),
    "cifar100": Published(write_cifar100, "cifar-100-python", "CIFAR100", 4, True),
    "svhn": Published(write_svhn, ".", "SVHN", 4, False),
    "stl10": Published(write_stl10, "stl10_binary", "STL10", 12, True),
    "mnist": Published(write_mnist, "MNIST/raw", "MNIST", 2, False),
    "fashion_mnist": Published(write_mnist, "FashionMNIST/raw", "FashionMNIST", 2, True),
}
