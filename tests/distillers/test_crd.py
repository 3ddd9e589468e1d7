"""Contrast against memory banks: the fixed normalisers, chunks, bounded draws, and an exact resume."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers import crd as module
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.crd import CRD, contrast_loss, draw_negatives
from kd_mlflow.distillers.registry import create
from kd_mlflow.errors import InputError
from tests.distillers.networks import context, network, take_step


@pytest.fixture
def pair():
    return network("shufflenet_v2_x0_5"), network("resnet18", seed=1)


def made(pair, **options) -> CRD:
    return create("crd", context(*pair), options)


def unit(seed: int, count: int = 3, width: int = 128) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


CHOSEN = torch.tensor([[0, 4, 8], [1, 5, 6], [2, 3, 7]])


def test_positive_and_negatives_at_the_noise_give_a_log_two_each():
    scores = torch.full((2, 4), 0.3, dtype=torch.float64)
    assert contrast_loss(scores, 3, 10).item() == pytest.approx(4 * math.log(2), abs=1e-6)


def test_normalisers_are_the_samples_times_the_mean_exponential_of_the_first_batch(pair):
    crd = made(pair, negatives=2)
    student, teacher = unit(0), unit(1)
    value = crd.contrast(student, teacher, CHOSEN)
    expected = torch.zeros(())
    for number, (own, bank) in enumerate(((student, crd.teacher_bank), (teacher, crd.student_bank))):
        exponentials = ((own[:, None] * bank[CHOSEN]).sum(dim=2) / 0.07).exp()
        assert crd.normalisers[number].item() == pytest.approx(12 * exponentials.mean().item(), rel=1e-5)
        expected = expected + contrast_loss(exponentials / (12 * exponentials.mean()), 2, 12)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_chunks_change_neither_the_contrast_nor_its_gradient(pair, monkeypatch):
    crd = made(pair, negatives=2)
    gradients, values = [], []
    for floats in (2**24, 1):
        monkeypatch.setattr(module, "CHUNK_FLOATS", floats)
        student, teacher = unit(0).requires_grad_(), unit(1).requires_grad_()
        value = crd.contrast(student, teacher, CHOSEN)
        gradients.append(torch.cat(torch.autograd.grad(value, (student, teacher))))
        values.append(value)
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0][:3].abs().sum() > 0
    assert gradients[0][3:].abs().sum() > 0


def test_the_gradient_is_that_of_the_banks_before_the_batch_was_remembered(pair):
    crd = made(pair, negatives=2)
    student, teacher = unit(0).requires_grad_(), unit(1)
    at_once = torch.autograd.grad(crd.contrast(student, teacher, CHOSEN), student)[0]
    value = crd.contrast(student, teacher, CHOSEN)
    crd.remember(student, teacher, torch.arange(12)[:3])
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], at_once)


def test_a_bank_row_moves_half_way_and_stays_on_the_sphere(pair):
    crd = made(pair)
    old, new = crd.student_bank[:3].clone(), unit(2)
    crd.remember(new, new, torch.arange(3))
    torch.testing.assert_close(crd.student_bank[:3], F.normalize(0.5 * old + 0.5 * new, dim=1))


def test_no_more_negatives_are_drawn_than_lie_outside_the_smallest_class(pair):
    assert made(pair).negatives == 8
    assert made(pair, negatives=5).negatives == 5
    labels = torch.tensor([0] * 9 + [1, 1, 2])
    uneven = Context(3, student=pair[0], teachers=(pair[1],), index=torch.arange(12), labels=labels)
    assert create("crd", uneven, {}).negatives == 11


def test_draws_follow_from_seed_and_step_alone():
    labels = torch.arange(12) % 3
    drawn = [draw_negatives(labels[:4], labels, 6, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert (labels[drawn[0]] != labels[:4, None]).all()


def test_rows_are_found_by_place_in_the_manifest(pair):
    places = torch.tensor([40, 7, 19, 3])
    scattered = Context(3, student=pair[0], teachers=(pair[1],), index=places, labels=torch.tensor([0, 1, 2, 0]))
    crd = create("crd", scattered, {})
    assert crd.rows[places].tolist() == [0, 1, 2, 3]
    assert crd.student_bank.shape == (4, 128)
    assert "rows" not in crd.state_dict()


def test_a_restored_state_goes_on_with_the_same_contrast(pair):
    student, teacher = pair
    whole = made(pair, negatives=6)
    take_step(whole, student, teacher)
    kept = {name: value.clone() for name, value in whole.state_dict().items()}
    expected = take_step(whole, student, teacher, number=1)
    resumed = made(pair, negatives=6)
    resumed.load_state_dict(kept)
    assert torch.equal(take_step(resumed, student, teacher, number=1).terms["contrast"], expected.terms["contrast"])


def test_unknown_images_are_refused(pair):
    with pytest.raises(InputError, match="every training image"):
        create("crd", Context(3, student=pair[0], teachers=(pair[1],)), {})
