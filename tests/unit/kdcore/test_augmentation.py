"""The steps of an augmentation give the pixels of torchvision.transforms.v2."""

import math
from collections.abc import Callable
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from kdcore.data.augmentation import colour, policies
from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.geometry import DRAWS_OF_A_BOX, box_of, resized_patches
from kdcore.data.augmentation.pipeline import augmented, drawn_patches
from kdcore.data.augmentation.steps import PRESETS, STEPS, Step, expanded, parse_augmentation
from kdcore.data.views import DRAWS_OF_A_PATCH
from tests.cases import Case

# Factors that `colour.factors` rounds: multiples of 2^-12.
FACTORS = torch.tensor([0.0, 0.25, 0.8125, 1.0, 1.270019531, 1.9, 3.5], dtype=torch.float64)


def photographs(count: int = 7, channels: int = 3, height: int = 40, width: int = 33) -> Tensor:
    """Smooth and noisy, dark and bright, with a flat and a grey one."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    noise = torch.rand(count, channels, height, width, generator=generator)
    images = (255 * (0.85 * smooth + 0.15 * noise)).to(torch.uint8)
    images[0] = torch.randint(256, images[0].shape, generator=generator).to(torch.uint8)
    images[1] = 77
    images[2] = images[2, :1]
    return images


def steps_of(*listed: Any) -> tuple[Step, ...]:
    steps = parse_augmentation(listed)
    assert isinstance(steps, tuple)
    return steps


def view_of(images: Tensor, *listed: Any, seed: int = 3, view: int = 2) -> Tensor:
    ids = torch.arange(len(images)) * 5 + 1
    return augmented(images, ids, steps_of(*listed), seed=seed, view=view)


def draws(images: Tensor, place: int = 0) -> Draws:
    """The draws of `view_of`."""
    return Draws(3, 2, torch.arange(len(images)) * 5 + 1, place)


def assert_nearly(ours: Tensor, theirs: Tensor, share: float = 1e-3) -> None:
    """Equal but for the rounding of a few pixels."""
    assert ours.shape == theirs.shape
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() <= share


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_those_of_torchvision(channels: int) -> None:
    images = photographs(channels=channels)
    factors = colour.factors(FACTORS, images.device)
    exact: dict[str, Callable[[Tensor, float], Tensor]] = {
        "brightness": F.adjust_brightness,
        "saturation": F.adjust_saturation,
        "sharpness": F.adjust_sharpness,
    }
    for name, reference in exact.items():
        with Case(name):
            theirs = [
                reference(one, factor)
                for one, factor in zip(images, factors.flatten().tolist(), strict=True)
            ]
            assert_nearly(getattr(colour, name)(images, factors), torch.stack(theirs), 1e-4)
    theirs = [
        F.adjust_contrast(one, factor)
        for one, factor in zip(images, factors.flatten().tolist(), strict=True)
    ]
    assert_nearly(colour.contrast(images, factors), torch.stack(theirs))
    turns = colour.factors(torch.linspace(-0.5, 0.5, 7).double(), images.device)
    theirs = [
        F.adjust_hue(one, turn) for one, turn in zip(images, turns.flatten().tolist(), strict=True)
    ]
    assert torch.equal(colour.hue(images, turns), torch.stack(theirs))


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_without_a_factor_are_those_of_torchvision(channels: int) -> None:
    images = photographs(channels=channels)
    assert torch.equal(colour.autocontrast(images), F.autocontrast(images))
    assert torch.equal(colour.equalize(images), F.equalize(images))
    assert_nearly(colour.gray(images), F.rgb_to_grayscale(images, channels), 1e-4)
    bits = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    thresholds = torch.tensor([0, 1, 60, 128, 200, 254, 255])
    for number, one in enumerate(images):
        row = slice(number, number + 1)
        kept = colour.posterize(images[row], bits[row])[0]
        assert torch.equal(kept, F.posterize(one, int(bits[number])))
        inverted = colour.solarize(images[row], thresholds[row])[0]
        assert torch.equal(inverted, F.solarize(one, float(thresholds[number])))


def test_policies_move_and_colour_as_torchvision_does() -> None:
    """Each operation at several levels, from the spaces of torchvision's own classes."""
    images = photographs(4)
    height, width = images.shape[2:]
    names = dict(zip(policies.OPERATIONS, v2.RandAugment._AUGMENTATION_SPACE, strict=True))
    for wide, theirs in ((False, v2.RandAugment()), (True, v2.TrivialAugmentWide())):
        highest = policies.highest(images, wide=wide)
        for ours, name in names.items():
            levels, signed = theirs._AUGMENTATION_SPACE[name]
            bins = levels(31, height, width)
            for level in (0, 7, 9, 30):
                for sign in (1.0, -1.0) if signed else (1.0,):
                    magnitude = 0.0 if bins is None else sign * float(bins[level])
                    share = torch.full((4,), sign * level / 30, dtype=torch.float64)
                    mine = policies.OPERATIONS[ours](images, share * highest.get(ours, 0.0))
                    expected = theirs._apply_image_or_video_transform(
                        images, name, magnitude, interpolation="nearest", fill={}
                    )
                    with Case(f"{name} {magnitude}"):
                        if ours in ("brightness", "color", "contrast", "sharpness"):
                            # Our factor is a multiple of 2^-12, torchvision's is not.
                            assert_nearly(mine, expected, 0.05)
                        else:
                            assert (mine != expected).double().mean() < 1e-3


def test_rand_augment_applies_its_operations_one_after_the_other() -> None:
    images, drawn = photographs(), draws(photographs())
    shown = view_of(images, {"rand_augment": {"num_ops": 3, "magnitude": 12}})
    highest, names = policies.highest(images, wide=False), list(policies.OPERATIONS)
    for number in range(len(images)):
        one = images[number : number + 1]
        for turn in range(3):
            name = names[drawn.below(2 * turn, len(names))[number]]
            sign = 1 - 2 * int(drawn.below(2 * turn + 1, 2)[number])
            sign = 1 if name in ("posterize", "solarize") else sign
            size = sign * (12 / 30 * highest.get(name, 0.0))
            magnitude = torch.tensor([size], dtype=torch.float64)
            one = policies.OPERATIONS[name](one, magnitude)
        assert torch.equal(one[0], shown[number])


def test_a_patch_is_resized_as_torchvision_does() -> None:
    images = photographs()
    patches = [(0, 0, 40, 33), (3, 5, 9, 11), (39, 32, 1, 1), (0, 2, 40, 2), (1, 1, 30, 30)]
    ours = resized_patches(images[:5], patches)
    for one, shown, patch in zip(images[:5], ours, patches, strict=True):
        assert torch.equal(shown, F.resized_crop(one, *patch, size=[40, 33], antialias=True))


def test_random_resized_crop_draws_as_torchvision_does() -> None:
    """Its patches have the shares and ratios asked for, and every one fits into the image."""
    images = photographs()[:1].expand(2000, -1, -1, -1)
    scale, ratio = (0.3, 0.6), (0.5, 1.25)
    step = {"random_resized_crop": {"scale": scale, "ratio": ratio}}
    (parsed,) = steps_of(step)
    patches = drawn_patches(parsed, [(400, 330)] * 2000, draws(images))
    shares = torch.tensor([h * w / (400 * 330) for _, _, h, w in patches])
    ratios = torch.tensor([w / h for _, _, h, w in patches])
    assert shares.min() > 0.29
    assert shares.max() < 0.61
    assert abs(shares.mean() - 0.45) < 0.01
    assert abs(ratios.log().mean() - (math.log(0.5) + math.log(1.25)) / 2) < 0.03
    assert all(t + h <= 400 and le + w <= 330 for t, le, h, w in patches)


def test_flip_gray_and_pad_crop_happen_as_often_as_they_should() -> None:
    images = photographs()[3:4].expand(4000, -1, -1, -1)
    flipped = (view_of(images, {"flip": {"p": 0.3}}) == images.flip(3)).flatten(1).all(1)
    assert abs(flipped.double().mean() - 0.3) < 0.03
    grey = (view_of(images, {"gray": {"p": 0.2}}).diff(dim=1) == 0).flatten(1).all(1)
    assert abs(grey.double().mean() - 0.2) < 0.03
    small = images[:, :, :6, :6]
    crops = torch.unique(view_of(small, {"pad_crop": {"padding": 1}}), dim=0)
    expected = [
        F.crop(F.pad(small[0], [1]), top, left, 6, 6) for top in range(3) for left in range(3)
    ]
    assert torch.equal(crops, torch.unique(torch.stack(expected), dim=0))


def test_color_jitter_changes_in_the_drawn_order_by_the_drawn_factors() -> None:
    images = photographs()
    settings = {"brightness": 0.4, "contrast": (0.5, 0.9), "saturation": 1.5, "hue": 0.1}
    shown = view_of(images, {"color_jitter": settings})
    drawn = draws(images)
    order = drawn.below(0, 24)
    limits = [(0.6, 1.4), (0.5, 0.9), (0.0, 2.5), (-0.1, 0.1)]
    reference = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for number in range(len(images)):
        expected = images[number]
        for which in list(permutations(range(4)))[order[number]]:
            value = drawn.between(1 + which, *limits[which])[number]
            expected = reference[which](expected, round(float(value) * 4096) / 4096)
        # One level of a step may become several in the next.
        assert (expected.int() - shown[number].int()).abs().double().mean() < 0.02


def test_random_erasing_erases_boxes_like_torchvisions() -> None:
    images = photographs()[:1].expand(3000, -1, -1, -1).clamp(min=1)
    erased = (view_of(images, {"random_erasing": {"p": 0.25}}) == 0).all(1)
    share = erased.flatten(1).double().mean(1)
    some = share > 0
    assert abs(some.double().mean() - 0.25) < 0.03
    theirs = v2.RandomErasing(p=1.0)
    torch.manual_seed(0)
    expected = torch.tensor([(theirs(images[0]) == 0).all(0).double().mean() for _ in range(750)])
    assert abs(share[some].mean() - expected.mean()) < 0.015
    for image in erased[some][:20]:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        box = image[rows[0, 0] : rows[-1, 0] + 1, columns[0, 0] : columns[-1, 0] + 1]
        assert box.all()
    assert box_of([0.0] * DRAWS_OF_A_BOX, 8, 8, (1.0, 1.0), (1.0, 1.0)) is None
    assert (view_of(images[:9], {"random_erasing": {"p": 1, "value": 7}}) == 7).any()


def test_blur_is_torchvisions_but_for_rounding() -> None:
    images = photographs()
    shown = view_of(images, {"blur": {"kernel_size": 5, "sigma": (0.3, 3.0)}})
    sigmas = draws(images).between(0, 0.3, 3.0).tolist()
    theirs = [
        F.gaussian_blur(one, [5, 5], [sigma, sigma])
        for one, sigma in zip(images, sigmas, strict=True)
    ]
    assert_nearly(shown, torch.stack(theirs))


EXAMPLES: dict[str, Any] = {
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    "blur": {"kernel_size": 3},
    "pad_crop": {"padding": 2},
    "gray": {"p": 0.5},
}


def test_a_view_does_not_depend_on_the_batch_and_leaves_the_image_as_it_was() -> None:
    """Every step and every preset, alone and in another order, of grey and coloured images."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    basic = steps_of({"pad_crop": {"padding": 4}}, "flip")
    chains = [steps_of({name: EXAMPLES.get(name, {})}) for name in STEPS]
    chains += [expanded(name, basic) for name in PRESETS]
    for channels in (1, 3):
        images = photographs(12, channels, 16, 16)
        kept, ids = images.clone(), torch.arange(12) * 3
        for steps in chains:
            with Case(", ".join(map(str, steps))):
                whole = augmented(images, ids, steps, seed=1, view=4)
                assert whole.dtype == torch.uint8
                assert whole.shape == images.shape
                shuffled = augmented(images[order], ids[order], steps, seed=1, view=4)
                assert torch.equal(shuffled, whole[order])
                alone = [
                    augmented(images[i : i + 1], ids[i : i + 1], steps, seed=1, view=4)
                    for i in range(3)
                ]
                assert torch.equal(torch.cat(alone), whole[:3])
                assert torch.equal(images, kept)


def test_the_same_step_at_another_place_draws_other_numbers() -> None:
    ids = torch.arange(1000)
    first, second = (Draws(0, 0, ids, place).uniform(0) for place in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.1
    assert torch.equal(
        Draws(0, 0, ids, 1).of(ids[5:9]).uniform(3), Draws(0, 0, ids, 1).uniform(3)[5:9]
    )


def test_presets_are_what_they_are_said_to_be() -> None:
    mirrored = steps_of("pad_crop", "flip")
    names = {preset: [s.name for s in expanded(preset, mirrored)] for preset in PRESETS}
    assert names == {
        "basic": ["pad_crop", "flip"],
        "imagenet": ["random_resized_crop", "flip", "color_jitter"],
        "strong": ["pad_crop", "flip", "rand_augment", "random_erasing", "mixup", "cutmix"],
        "patient": ["random_resized_crop", "flip", "mixup"],
    }
    # Digits are not mirrored by any preset.
    assert [s.name for s in expanded("patient", mirrored[:1])] == ["random_resized_crop", "mixup"]


def test_parameters_have_the_names_and_defaults_of_torchvision() -> None:
    theirs: dict[str, Any] = {
        "random_resized_crop": v2.RandomResizedCrop(8),
        "flip": v2.RandomHorizontalFlip(),
        "rand_augment": v2.RandAugment(),
        "trivial_augment": v2.TrivialAugmentWide(),
        "random_erasing": v2.RandomErasing(),
        "gray": v2.RandomGrayscale(),
        "blur": v2.GaussianBlur(3),
        "mixup": v2.MixUp(num_classes=2),
        "cutmix": v2.CutMix(num_classes=2),
    }
    for name, transform in theirs.items():
        (step,) = steps_of({name: {"kernel_size": 3} if name == "blur" else {}})
        for field, value in step:
            given = getattr(transform, field)
            with Case(f"{name}.{field}"):
                if field == "kernel_size":
                    given = given[0]
                if field == "value":
                    (given,) = given
                assert value == (tuple(given) if isinstance(given, list | tuple) else given)


def test_draws_of_a_step_have_numbers_of_their_own() -> None:
    """The largest number that a step draws is below that of the next step."""
    assert DRAWS_OF_A_PATCH < 1024
    assert DRAWS_OF_A_BOX + 1 < 1024
    assert 2 * 16 + 1 < 1024  # rand_augment with most operations
    for first, second in pairwise(range(4)):
        assert not torch.equal(
            Draws(0, 0, torch.arange(9), first).below(1023, 1000),
            Draws(0, 0, torch.arange(9), second).below(0, 1000),
        )
