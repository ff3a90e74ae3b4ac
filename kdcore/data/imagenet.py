"""ImageNet: 1,331,167 photographs of any size, in 1,000 classes.

Source: Russakovsky et al., arXiv:1409.0575. The root contains `train/<wnid>/*.JPEG` and
`val/<wnid>/*.JPEG`, as torchvision's reader unpacks them; `val` is the test split. Classes are the
sorted wnids, in the order of published weights.
"""

from pathlib import Path

from kdcore.data.downloads import download_once
from kdcore.data.image_folder import (
    ClassFolder,
    ImageFolderSource,
    folders_in,
    train_and_test_folders,
)
from kdcore.errors import DataError

_PARTS = ("train", "val")
_LAYOUT = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
_ADVICE = (
    "or put the three archives of image-net.org (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, "
    "ILSVRC2012_devkit_t12.tar.gz) there, and set download: true to let torchvision unpack them"
)


def _folders(root: Path) -> tuple[tuple[str, ...], list[ClassFolder]]:
    for part in _PARTS:
        if not (root / part).is_dir() or not folders_in(root / part):
            what = "no folder for each class in it" if (root / part).is_dir() else "no such folder"
            raise DataError(
                f"root is {str(root)!r}, but {part} has {what}; unpack ImageNet as {_LAYOUT}, "
                f"{_ADVICE}"
            )
    return train_and_test_folders(root, "val")


def _unpack(root: Path) -> None:
    def is_complete() -> bool:
        return all((root / part).is_dir() for part in _PARTS)

    def unpack() -> None:
        from torchvision.datasets import ImageNet  # only needed for unpacking

        for part in _PARTS:
            ImageNet(str(root), split=part)

    download_once(root, is_complete, unpack, "unpack ImageNet there yourself")


SOURCE = ImageFolderSource(layout=f"{_LAYOUT}, {_ADVICE}", folders=_folders, download=_unpack)
