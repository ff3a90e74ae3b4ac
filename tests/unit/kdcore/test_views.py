"""Deterministic augmentation, and stratified selection."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from kdcore.data.augmentation.pipeline import augmented
from kdcore.data.augmentation.steps import RandAugment
from kdcore.data.image_data import ImageData
from kdcore.data.stratified import stratified_halves, stratified_order
from kdcore.data.views import crop_and_flip, draw, is_mirrored, patch_draws, patch_of

_WORD = (1 << 64) - 1


def _naive_mix(word: int) -> int:
    """SplitMix64 in Python's integers, which never wrap."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _naive_draw(seed: int, view: int, image_id: int, number: int, below: int) -> int:
    key = _naive_mix(_naive_mix(seed ^ view) ^ number)
    return (_naive_mix(_naive_mix(image_id ^ key)) >> 33) % below


def test_draws_are_those_of_splitmix64() -> None:
    ids = [0, 1, 2, 1796, 69_999, 2**31, 2**62 + 5]
    seeds, views = (0, 1, 2**63 - 1), (0, 7, 239, 2**40)
    for seed, view, number_and_below in product(seeds, views, ((0, 2), (1, 3), (2, 9), (5, 2**31))):
        drawn = draw(seed, view, torch.tensor(ids), *number_and_below)
        assert drawn.dtype == torch.int64
        expected = [_naive_draw(seed, view, i, *number_and_below) for i in ids]
        assert drawn.tolist() == expected, (seed, view, *number_and_below)


def _chi_square(counts: Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def _normal_bound(cells: int) -> float:
    """Chi-square with so many cells exceeds mean + 5 deviations about once in 10^5 times."""
    freedom = cells - 1
    return freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("below", [2, 3, 5, 9, 64])
@pytest.mark.parametrize(("seed", "view", "number"), [(0, 0, 0), (0, 0, 1), (1, 5, 2)])
def test_draws_are_uniform(below: int, seed: int, view: int, number: int) -> None:
    drawn = draw(seed, view, torch.arange(50_000), number, below)
    counts = drawn.bincount(minlength=below).double()
    assert len(counts) == below
    assert _chi_square(counts) < _normal_bound(below)


IDS = torch.arange(50_000)
PAIRS_OF_DRAWS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "numbers": lambda: (draw(0, 0, IDS, 1, 5), draw(0, 0, IDS, 2, 5)),
    "first numbers": lambda: (draw(0, 0, IDS, 0, 5), draw(0, 0, IDS, 1, 5)),
    "views": lambda: (draw(0, 0, IDS, 1, 5), draw(0, 1, IDS, 1, 5)),
    "seeds": lambda: (draw(0, 3, IDS, 1, 5), draw(1, 3, IDS, 1, 5)),
    "neighbours": lambda: (draw(0, 0, IDS, 1, 5), draw(0, 0, IDS + 1, 1, 5)),
    # Words that are mixed in one after the other could cancel: a view for a number, or a seed.
    "view for number": lambda: (draw(0, 1, IDS, 2, 5), draw(0, 2, IDS, 1, 5)),
    "seed for view": lambda: (draw(1, 2, IDS, 0, 5), draw(2, 1, IDS + 1, 0, 5)),
}


@pytest.mark.parametrize("case", PAIRS_OF_DRAWS)
def test_draws_of_different_numbers_views_seeds_and_images_are_independent(case: str) -> None:
    first, second = PAIRS_OF_DRAWS[case]()
    counts = (first * 5 + second).bincount(minlength=25).double()
    assert _chi_square(counts) < _normal_bound(25)


def random_images(
    images: int,
    channels: int = 1,
    height: int = 6,
    width: int = 9,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (images, channels, height, width)
    return torch.randint(1, 256, size, generator=generator).to(dtype)


def viewed(images: Tensor, ids: Tensor, seed: int = 0, view: int = 0) -> Tensor:
    return crop_and_flip(images, ids, seed=seed, view=view, crop_padding=2, flip=True)


def test_an_image_looks_the_same_alone_and_in_any_batch_and_order() -> None:
    images, ids = random_images(40), torch.arange(40) * 7
    together = viewed(images, ids)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(viewed(images[order], ids[order]), together[order])
    alone = [viewed(images[i : i + 1], ids[i : i + 1]) for i in range(40)]
    assert torch.equal(torch.cat(alone), together)


def test_an_image_does_not_depend_on_the_others_in_its_batch() -> None:
    images, ids = random_images(10), torch.arange(10)
    others = images.clone()
    others[1:] = 255 - others[1:]
    assert torch.equal(viewed(images, ids)[0], viewed(others, ids)[0])
    assert torch.equal(viewed(images, ids)[:1], viewed(images[:1].repeat(3, 1, 1, 1), ids[:3])[:1])


def test_the_same_seed_and_view_give_the_same_pixels_whatever_was_drawn_before() -> None:
    images, ids = random_images(20), torch.arange(20)
    first = viewed(images, ids)
    torch.rand(3)
    before = torch.get_rng_state()
    assert torch.equal(viewed(images, ids), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_views_seeds_and_ids_give_other_pixels() -> None:
    images, ids = random_images(40), torch.arange(40)
    first = viewed(images, ids)
    for other in (
        viewed(images, ids, view=1),
        viewed(images, ids, seed=1),
        viewed(images, ids + 1),
    ):
        same = (first == other).flatten(1).all(1)
        # Each image has 50 ways to look, so that about one of 50 stays as it was.
        assert same.sum() < 8


def test_images_are_left_as_they_were() -> None:
    images = random_images(8)
    kept = images.clone()
    viewed(images, torch.arange(8))
    assert torch.equal(images, kept)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
def test_the_type_and_shape_of_images_are_kept(dtype: torch.dtype) -> None:
    images = random_images(5, channels=3, dtype=dtype)
    out = viewed(images, torch.arange(5))
    assert out.dtype == dtype
    assert out.shape == images.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
def test_without_padding_and_flip_images_stay_as_they_are(dtype: torch.dtype) -> None:
    images = random_images(20, channels=3, dtype=dtype)
    out = crop_and_flip(images, torch.arange(20), seed=3, view=4, crop_padding=0, flip=False)
    assert torch.equal(out, images)


def slices_that_occur(images: Tensor, out: Tensor, crop_padding: int, flip: bool) -> Tensor:
    """How many images are each slice of their padded selves; every one must be some slice."""
    height, width = images.shape[2:]
    padded = pad(images, (crop_padding,) * 4)
    occurred = []
    unexplained = torch.ones(len(images), dtype=torch.bool)
    for mirrored in (False, True) if flip else (False,):
        for top in range(2 * crop_padding + 1):
            for left in range(2 * crop_padding + 1):
                crop = padded[:, :, top : top + height, left : left + width]
                crop = crop.flip(3) if mirrored else crop
                same = (out == crop).flatten(1).all(1)
                occurred.append(same.sum())
                unexplained &= ~same
    assert not unexplained.any()
    return torch.stack(occurred).double()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("crop_padding", "flip"), [(1, False), (2, True), (0, True)])
def test_a_view_is_a_slice_of_the_padded_image_and_every_slice_occurs(
    crop_padding: int, flip: bool, channels: int
) -> None:
    images = random_images(3000, channels)
    out = crop_and_flip(
        images, torch.arange(3000), seed=0, view=0, crop_padding=crop_padding, flip=flip
    )
    occurred = slices_that_occur(images, out, crop_padding, flip)
    assert _chi_square(occurred) < _normal_bound(len(occurred))


def test_one_image_shows_every_slice_in_its_views() -> None:
    image = random_images(1)
    out = torch.cat([viewed(image, torch.tensor([17]), view=view) for view in range(1500)])
    occurred = slices_that_occur(image.expand(1500, -1, -1, -1), out, crop_padding=2, flip=True)
    assert _chi_square(occurred) < _normal_bound(50)


def test_no_pixel_of_one_image_appears_in_another() -> None:
    values = torch.arange(1, 201, dtype=torch.uint8)
    images = values[:, None, None, None].expand(-1, 2, 6, 6).contiguous()
    out = viewed(images, torch.arange(200))
    # An image is one shade: what is not its own is the black border.
    assert ((out == images) | (out == 0)).all()
    assert (out == 0).any()


# Views of a data set


def view(data: ImageData, positions: Tensor, epoch: int) -> Tensor:
    (images,) = data.train.views(positions, data.view_of(epoch), len(positions))
    return images


def test_a_data_sets_views_take_turns(digits: ImageData) -> None:
    three = replace(digits, config=digits.config.model_copy(update={"views": 3}))
    positions = torch.tensor([5, 0, 17, 300])
    fresh = replace(digits, config=digits.config.model_copy(update={"views": None}))
    seen = [view(three, positions, epoch) for epoch in range(1, 8)]
    for turn in range(4):
        assert torch.equal(seen[turn], seen[turn + 3])
    for turn in range(3):
        assert torch.equal(seen[turn], view(fresh, positions, turn + 1))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_one_view_is_the_same_in_every_epoch_and_none_is_a_fresh_one(digits: ImageData) -> None:
    positions = torch.arange(64)
    one = replace(digits, config=digits.config.model_copy(update={"views": 1}))
    fresh = replace(digits, config=digits.config.model_copy(update={"views": None}))
    first = view(one, positions, 1)
    assert torch.equal(first, view(fresh, positions, 1))
    for epoch in range(2, 7):
        assert torch.equal(view(one, positions, epoch), first)
        assert not torch.equal(view(fresh, positions, epoch), first)


def test_a_view_belongs_to_the_image_not_to_its_place_in_the_split(digits: ImageData) -> None:
    positions = torch.arange(50)
    straight = view(digits, positions, 1)
    train = digits.train
    moved = replace(
        train,
        images=train.images.roll(7, 0),
        labels=train.labels.roll(7),
        image_ids=train.image_ids.roll(7),
    )
    assert torch.equal(view(replace(digits, train=moved), positions + 7, 1), straight)


def test_a_second_view_is_stronger_and_draws_on_its_own(digits: ImageData) -> None:
    train, positions = digits.train, torch.arange(40)
    strong = train.strong()
    (images,) = strong.views(positions, 1, 40)
    steps = (*train.all_steps(), RandAugment(num_ops=2, magnitude=10))
    shown = train.images[positions], train.image_ids[positions], steps
    # The seeds of configurations end below 2^32.
    assert torch.equal(images, augmented(*shown, seed=train.view_seed + 2**32, view=1))
    assert not torch.equal(images, augmented(*shown, seed=train.view_seed, view=1))
    assert torch.equal(strong.labels, train.labels)
    parts = torch.cat(list(strong.views(positions.flip(0), 1, 7)))
    assert torch.equal(parts.flip(0), images)


# Stratified selection

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 17 + [3] * 3)


def test_halves_are_disjoint_sorted_and_cover_everything() -> None:
    for first in range(0, 101, 5):
        chosen, rest = stratified_halves(LABELS, first, seed=0)
        assert len(chosen) == first
        assert sorted(chosen.tolist() + rest.tolist()) == list(range(100)), first
        assert chosen.tolist() == sorted(chosen.tolist()), first
        assert rest.tolist() == sorted(rest.tolist()), first


@pytest.mark.parametrize("seed", range(5))
def test_every_leading_part_holds_each_class_in_its_share(seed: int) -> None:
    order = stratified_order(LABELS, seed)
    assert sorted(order.tolist()) == list(range(100))
    counts = torch.nn.functional.one_hot(LABELS[order]).cumsum(0)
    lengths = torch.arange(1, 101)[:, None]
    shares = LABELS.bincount() / 100
    # One image for the class itself, and one for what the other classes round the other way.
    assert (counts - lengths * shares).abs().max() < 2


def test_small_parts_favour_no_class() -> None:
    first = [int(LABELS[stratified_order(LABELS, seed)[0]]) for seed in range(400)]
    shares = torch.tensor(first).bincount(minlength=4) / 400
    assert (shares - torch.tensor([0.5, 0.3, 0.17, 0.03])).abs().max() < 0.1


def test_the_seed_decides_the_halves() -> None:
    first, again, other = (stratified_halves(LABELS, 40, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_selection_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    stratified_halves(LABELS, 40, 3)
    assert torch.equal(torch.get_rng_state(), before)


# Patches


PATCH_IDS = torch.arange(20_000)


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """[20,000, 4]: top, left, height and width of patches of images of 375x500."""
    draws = patch_draws(0, 0, PATCH_IDS).tolist()
    return torch.tensor([patch_of(row, 375, 500) for row in draws]).double()


def test_patches_lie_in_the_image_and_within_their_bounds(patches: Tensor) -> None:
    top, left, height, width = patches.T
    assert (patches[:, :2] >= 0).all()
    assert (top + height <= 375).all()
    assert (left + width <= 500).all()
    share = height * width / (375 * 500)
    # Sides are rounded to pixels, the smallest of them some 90.
    assert share.min() > 0.08 * 0.98
    assert share.max() <= 1
    assert (width / height).min() > 3 / 4 * 0.98
    assert (width / height).max() < 4 / 3 * 1.02


def test_patches_are_distributed_as_torchvisions(patches: Tensor) -> None:
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(3, 375, 500)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor(
            [
                RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
                for _ in range(len(patches))
            ]
        ).double()
    for ours, other in zip(patches.T, theirs.T, strict=True):
        spread = other.std() * (2 / len(patches)) ** 0.5
        assert (ours.mean() - other.mean()).abs() < 5 * spread
        assert ours.std() / other.std() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (3, 2), (64, 64)])
def test_images_of_any_shape_have_patches(height: int, width: int) -> None:
    for row in patch_draws(0, 0, torch.arange(300)).tolist():
        top, left, patch_height, patch_width = patch_of(row, height, width)
        assert 0 <= top <= height - patch_height < height
        assert 0 <= left <= width - patch_width < width


def test_what_no_patch_fits_into_shows_its_middle() -> None:
    rows = patch_draws(0, 0, torch.arange(50)).tolist()
    assert {patch_of(row, 10, 1000) for row in rows} == {(0, 494, 10, 13)}
    assert {patch_of(row, 1000, 10) for row in rows} == {(494, 0, 13, 10)}


def test_half_of_the_patches_are_mirrored_whatever_their_place() -> None:
    draws = patch_draws(5, 2, PATCH_IDS)
    mirrored = torch.tensor([is_mirrored(row) for row in draws.tolist()])
    counts = (mirrored * 5 + (draws[:, 1] * 5).long()).bincount(minlength=10).double()
    assert _chi_square(counts) < _normal_bound(10)


def test_draws_of_patches_belong_to_seed_view_and_image() -> None:
    first = patch_draws(0, 0, PATCH_IDS[:100])
    assert torch.equal(patch_draws(0, 0, PATCH_IDS[:100].flip(0)).flip(0), first)
    assert 0 <= first.min() <= first.max() < 1
    for other in (
        patch_draws(1, 0, PATCH_IDS[:100]),
        patch_draws(0, 1, PATCH_IDS[:100]),
        patch_draws(0, 0, PATCH_IDS[1:101]),
    ):
        assert not (other == first).any()
