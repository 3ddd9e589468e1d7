"""The loss of a batch in parts is the loss of the batch: terms that are no mean over images know the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Context, Progress
from kd_mlflow.distillers.describe import describe
from kd_mlflow.distillers.names import METHODS
from kd_mlflow.distillers.registry import create, method_class, method_options
from kd_mlflow.entrypoints.cutting import check_parts
from kd_mlflow.errors import InputError
from kd_mlflow.models.exits import ExitOutputs
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import PROGRESS
from tests.distillers.steps import recipe_of, two_steps

PARTS = [1, 2, 3, 4, 8]


def batch_of(labels: list[int]) -> Batch:
    """Images that are their own places, so that whatever stands in for a network can look them up."""
    places = torch.arange(len(labels))
    return Batch(places, torch.tensor(labels), places)


def in_parts(method, batch: Batch, parts: int, outputs, progress: Progress = PROGRESS):
    """Losses and terms of a batch that the method sees in parts, averaged by the parts' numbers of images."""
    shares, steps = [], []
    for part in batch.split(parts):
        shares.append(len(part.labels) / len(batch.labels))
        steps.append(method(part, outputs, [], progress))
    loss = sum(share * sum(step.losses.values()) for share, step in zip(shares, steps, strict=True))
    names = steps[0].terms
    return loss, {n: sum(s * step.terms[n] for s, step in zip(shares, steps, strict=True)).item() for n in names}


def with_loss(*losses: float) -> torch.Tensor:
    """Logits of two classes ``[B, 2]`` whose first class has these cross-entropies."""
    return torch.tensor([[-loss, math.log1p(-math.exp(-loss))] for loss in losses])


@pytest.mark.parametrize("parts", PARTS)
def test_class_weights_are_divided_by_the_weight_of_the_whole_batch(parts):
    """Weights 1 and 5, four images each: (0.703 + 5 · 0.361) / 6; halves by themselves would give 0.532."""
    rare, common = with_loss(0.361).flip(1), with_loss(0.703)
    logits = torch.cat([common.repeat(4, 1), rare.repeat(4, 1)]).requires_grad_()
    labels = create("labels", Context(2, class_weights=torch.tensor([1.0, 5.0])), {})
    batch = batch_of([0] * 4 + [1] * 4)
    loss, terms = in_parts(labels, batch, parts, lambda places: Outputs(logits[places]))
    assert terms["cross_entropy"] == pytest.approx(0.418, abs=1e-6)
    loss.backward()
    whole = logits.detach().clone().requires_grad_()
    F.cross_entropy(whole, batch.labels, weight=torch.tensor([1.0, 5.0])).backward()
    torch.testing.assert_close(logits.grad, whole.grad)


@pytest.mark.parametrize("parts", PARTS)
def test_label_smoothing_with_class_weights_is_that_of_the_whole_batch(parts):
    draw = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(8, 3, generator=draw), torch.tensor([0.2, 1.0, 7.0])
    labels = create("labels", Context(3, class_weights=weights, label_smoothing=0.2), {})
    batch = batch_of([0, 0, 0, 1, 1, 2, 0, 1])
    loss, _ = in_parts(labels, batch, parts, lambda places: Outputs(logits[places]))
    expected = F.cross_entropy(logits, batch.labels, weight=weights, label_smoothing=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_part_or_a_batch_that_weighs_nothing_adds_nothing(smoothing):
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.5]]).requires_grad_()
    weights = torch.tensor([0.0, 2.0])
    labels = create("labels", Context(2, class_weights=weights, label_smoothing=smoothing), {})
    labels.cross_entropy(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.tolist() == [[0, 0], [0, 0]]
    loss, _ = in_parts(labels, batch_of([0, 1]), 2, lambda places: Outputs(logits[places]))
    expected = F.cross_entropy(logits, torch.tensor([0, 1]), weight=weights, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_feature_term_of_byot_is_the_sum_over_the_whole_batch(parts):
    byot = create("byot", Context(2), {"alpha": 0.0, "beta": 1.0})
    features = torch.tensor([[8.0, 0.0], [0.0, 12.0], [1.0, -4.0], [5.0, 0.9]]).requires_grad_()
    target, logits = torch.zeros(4, 2), torch.zeros(4, 2)

    def exits(places):
        return ExitOutputs([logits[places]] * 2, [features[places], target[places]])

    student = SimpleNamespace(model=SimpleNamespace(exits=exits))
    loss, terms = in_parts(byot, batch_of([0, 1, 0, 1]), parts, student)
    assert terms["feature"] == pytest.approx(64 + 144 + 1 + 25 + 0.81)
    assert loss.item() == pytest.approx(234.81 + 2 * math.log(2))
    loss.backward()
    torch.testing.assert_close(features.grad, 2 * features.detach().clamp(min=0))


def test_parts_of_parts_know_the_whole_and_a_whole_batch_carries_nothing():
    batch = batch_of([3, 1, 2, 0, 1])
    assert batch.whole_labels is None
    assert batch.split(1)[0].whole_labels is None
    for share in batch.split(2):
        for part in share.split(2):
            assert part.whole_labels.tolist() == [3, 1, 2, 0, 1]


# Of a split of 40 images, by class: how many there are in an epoch, and how many of them the student gets right.
EPOCHS = [((12, 12, 16), (2, 3, 8)), ((12, 10, 18), (2, 3, 9)), ((12, 12, 16), (0, 0, 0))]


@pytest.mark.parametrize("parts", [1, 2, 4, 40])
def test_ttsd_takes_an_epoch_in_once_however_its_first_step_is_cut(parts):
    """2/12 twice, 0.9 · 3/12 + 0.1 · 3/10, and ½ twice, after three epochs of one step."""
    ttsd = create("ttsd", Context(3), {})
    for epoch, (counts, right) in enumerate(EPOCHS):
        labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
        logits = torch.cat([_answers(label, *pair) for label, pair in enumerate(zip(counts, right, strict=True))])
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        progress = Progress(epoch + 1, 3, epoch, 1)
        for number, part in enumerate(batch_of(labels[order].tolist()).split(parts)):
            own = logits[order][part.index]
            ttsd.loss(Outputs(own), [Outputs(own)], part.labels, replace(progress, part=number))
    assert ttsd.accuracies.tolist() == pytest.approx([0.167, 0.255, 0.5], abs=5e-4)
    assert ttsd.counts.tolist() == [12, 12, 16]


def _answers(label: int, count: int, right: int) -> torch.Tensor:
    """Logits ``[count, 3]``, of which the first ``right`` name the label and the rest another class."""
    named = torch.tensor([label] * right + [(label + 1) % 3] * (count - right))
    return F.one_hot(named, 3).float()


def variants() -> list[tuple[str, dict]]:
    """Every method as it is, and with each other choice of each of its options; ``deploy`` enters no loss."""
    found: list[tuple[str, dict]] = []
    for name in METHODS:
        fields = method_class(name).Options.model_fields
        told = {item["name"]: item for item in describe(name)["options"]}
        choices = {n: told[n]["choices"] or ([False, True] if f.annotation is bool else []) for n, f in fields.items()}
        found.append((name, {}))
        found += [
            (name, {n: c}) for n, all_of in choices.items() for c in all_of if n != "deploy" and c != fields[n].default
        ]
    return found


VARIANTS = variants()
NAMES = ["-".join([name, *(f"{n}={c}" for n, c in options.items())]) for name, options in VARIANTS]


def relational(name: str, options: dict) -> bool:
    return method_class(name).is_relational(method_options(name, options))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=NAMES)
def test_every_method_takes_the_same_steps_in_parts_or_refuses_them(name, options):
    whole = two_steps(name, options, 1)
    if relational(name, options):
        # Declared with reason: the parts would have another loss.
        cut = two_steps(name, options, 2)
        assert any(not torch.allclose(cut[key], value, rtol=1e-4) for key, value in whole.items() if "loss" in key)
        with pytest.raises(InputError, match=f"'{name}' sees the images of a batch together, so that --accumulate 2"):
            check_parts(recipe_of(name, options, 2))
        return
    check_parts(recipe_of(name, options, 4))
    for parts in (2, 4):
        cut = two_steps(name, options, parts)
        assert cut.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(
                cut[key], value, rtol=1e-7, atol=1e-9, msg=lambda said, key=key: f"{key}: {said}"
            )
