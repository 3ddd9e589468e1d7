from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from kd_mlflow.config import AugmentationOptions
from kd_mlflow.data.augment import augment, centre_crop, permutation, uniform
from kd_mlflow.data.colors import recolor
from kd_mlflow.data.geometry import Operation, distortion, random_crop

SIZE, SIDE = 28, 32


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth pictures: noise says little about resampling."""
    small = torch.rand(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(small, SIDE, mode="bicubic").clamp(0, 255).round().to(torch.uint8)


def done(images: torch.Tensor, index: torch.Tensor, kind: str, seed: int = 3, epoch: int = 2, **options: object):
    chosen = AugmentationOptions(augmentation=kind, **options)
    return augment(images[index], index, chosen, size=SIZE, seed=seed, epoch=epoch)


@pytest.mark.parametrize("kind", ["none", "crop", "strong"])
@pytest.mark.parametrize("batch", [2, 3, 5, 32])
def test_sample_has_the_same_bits_in_every_batch(images, kind: str, batch: int):
    order = torch.from_numpy(permutation(96, 7, 1))
    whole = done(images, torch.arange(96), kind)
    for start in range(0, 96 - batch + 1, batch):
        part = order[start : start + batch]
        assert torch.equal(done(images, part, kind), whole[part])


@pytest.mark.parametrize("kind", ["crop", "strong"])
def test_augmented_batch_is_a_function_of_seed_epoch_and_index(images, kind: str):
    index = torch.arange(96)
    first = done(images, index, kind)
    assert torch.equal(first, done(images, index, kind))
    for other in (done(images, index, kind, seed=4), done(images, index, kind, epoch=3)):
        assert (first != other).flatten(1).any(1).float().mean() > 0.95
    same = images[:1].expand(96, -1, -1, -1)
    options = AugmentationOptions(augmentation=kind)
    assert len(torch.unique(augment(same, index, options, size=SIZE, seed=3, epoch=2).flatten(1), dim=0)) == 96


def test_none_is_the_exact_centre_in_uint8(images):
    result = done(images, torch.arange(96), "none")
    assert result.dtype == torch.uint8
    assert torch.equal(result, images[:, :, 2:30, 2:30])
    assert torch.equal(result, centre_crop(images, SIZE))


@pytest.mark.parametrize("kind", ["crop", "strong"])
def test_result_is_float_pixels_of_the_right_size(images, kind: str):
    result = done(images, torch.arange(96), kind)
    assert result.dtype == torch.float32
    assert result.shape == (96, 3, SIZE, SIZE)
    assert result.min() >= 0
    assert result.max() <= 255


def test_whole_image_without_flip_is_a_plain_resize(images):
    affine = random_crop(np.arange(96), AugmentationOptions(crop_min_scale=1.0, flip=False), seed=0, epoch=0)
    plain = functional.resize(images.float(), [SIZE, SIZE], antialias=False)
    # Only an aspect of exactly 1 fits the whole image, so the fallback is what is seen here.
    assert torch.allclose(affine.sample(images, SIZE), plain, atol=0.01)


def test_crops_have_the_promised_areas_and_aspects_and_stay_inside():
    a, _, c, _, e, f = random_crop(np.arange(5000), AugmentationOptions(crop_min_scale=0.35), seed=1, epoch=1).rows
    width, height = np.abs(a), e
    assert 0.35 <= (width * height).min() < 0.37
    assert (width * height).max() > 0.95
    assert 0.749 <= (width / height).min() < 0.77
    assert 1.30 < (width / height).max() <= 1.334
    assert (np.abs(c) + width).max() <= 1 + 1e-9
    assert (np.abs(f) + height).max() <= 1 + 1e-9


def test_half_of_the_samples_are_mirrored_and_none_without_flip():
    mirrored = random_crop(np.arange(4000), AugmentationOptions(), seed=1, epoch=1).rows[0] < 0
    assert abs(mirrored.mean() - 0.5) < 0.03
    assert (random_crop(np.arange(4000), AugmentationOptions(flip=False), seed=1, epoch=1).rows[0] > 0).all()


def test_mirrored_crop_is_the_mirror_image(images):
    index = np.arange(96)
    kept = random_crop(index, AugmentationOptions(flip=False), seed=0, epoch=0)
    turned = random_crop(index, AugmentationOptions(flip=True), seed=0, epoch=0)
    mirrored = torch.from_numpy(turned.rows[0] < 0)
    plain, flipped = kept.sample(images, SIZE), turned.sample(images, SIZE)
    assert torch.allclose(plain[mirrored].flip(-1), flipped[mirrored], atol=0.01)
    assert torch.equal(plain[~mirrored], flipped[~mirrored])


@pytest.mark.parametrize(
    ("kind", "magnitude", "sign", "reference"),
    [
        (Operation.BRIGHTNESS, 20, 1, lambda x: functional.adjust_brightness(x, 1.66)),
        (Operation.COLOR, 20, -1, lambda x: functional.adjust_saturation(x, 0.34)),
        (Operation.CONTRAST, 20, 1, lambda x: functional.adjust_contrast(x, 1.66)),
        (Operation.SHARPNESS, 30, 1, lambda x: functional.adjust_sharpness(x, 1.99)),
        (Operation.POSTERIZE, 30, 1, lambda x: functional.posterize(x, 2)),
        (Operation.SOLARIZE, 15, 1, lambda x: functional.solarize(x, 127.5)),
        (Operation.AUTO_CONTRAST, 0, 1, functional.autocontrast),
        (Operation.EQUALIZE, 0, 1, functional.equalize),
    ],
)
def test_colour_operations_agree_with_torchvision(images, kind, magnitude, sign, reference):
    count = len(images)
    result = recolor(images.float(), np.full(count, kind), np.full(count, magnitude), np.full(count, float(sign)))
    assert (result - reference(images).float()).abs().max() < 2.1  # torchvision rounds at every step


def test_colour_operations_leave_other_samples_alone(images):
    operation = np.where(np.arange(96) % 2, Operation.SOLARIZE, Operation.ROTATE)
    result = recolor(images.float(), operation, np.full(96, 30), np.ones(96))
    assert torch.equal(result[::2], images[::2].float())
    assert torch.equal(result[1::2], 255 - images[1::2].float())


@pytest.mark.parametrize(
    ("kind", "degrees", "shear"),
    [(Operation.ROTATE, 45.0, (0.0, 0.0)), (Operation.IDENTITY, 0.0, (0.0, 0.0))],
)
def test_rotation_agrees_with_torchvision_inside_the_circle(images, kind, degrees, shear):
    count = len(images)
    ours = distortion(np.full(count, kind), np.full(count, 10), np.ones(count)).sample(images, SIDE)
    theirs = functional.affine(
        images.float(), -degrees, [0, 0], 1.0, list(shear), interpolation=functional.InterpolationMode.BILINEAR
    )
    reversed_ = functional.affine(
        images.float(), degrees, [0, 0], 1.0, list(shear), interpolation=functional.InterpolationMode.BILINEAR
    )
    middle = (..., slice(8, 24), slice(8, 24))
    errors = [(ours - other)[middle].abs().max().item() for other in (theirs, reversed_)]
    assert min(errors) < 0.5


def test_uniform_numbers_are_uniform_and_unrelated():
    index = np.arange(20000)
    numbers = [uniform(0, 0, index, 0), uniform(0, 0, index, 1), uniform(0, 1, index, 0), uniform(1, 0, index, 0)]
    for one in numbers:
        assert one.min() >= 0
        assert one.max() < 1
        assert np.abs(np.histogram(one, 20, (0, 1))[0] / 1000 - 1).max() < 0.15
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.03


def test_uniform_numbers_do_not_change_between_versions():
    numbers = uniform(0, 1, np.array([0, 1, 2**40]), 3).tolist()
    assert numbers == [
        0.5017484784407085,
        0.24868382048537374,
        0.7005238261563919,
    ]


def test_permutation_holds_every_place_once_and_depends_on_seed_and_epoch():
    first = permutation(1000, 0, 1)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, permutation(1000, 0, 1))
    assert (first != permutation(1000, 0, 2)).mean() > 0.99
    assert (first != permutation(1000, 1, 1)).mean() > 0.99
    assert permutation(0, 0, 0).tolist() == []
