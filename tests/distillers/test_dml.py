"""Deep mutual learning: golden loss, peers that learn, gradients that stay at home."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.dml import mutual_loss
from kd_mlflow.distillers.registry import create
from tests.distillers.networks import context, network, take_step


def test_the_loss_has_the_golden_value_and_the_other_network_no_gradient():
    own = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(own, torch.tensor([0])) + mutual_loss(own, [other])
    loss.backward()
    assert loss.item() == pytest.approx(0.746767, abs=1e-6)
    assert other.grad is None
    assert own.grad is not None


def test_several_others_are_averaged():
    own, others = torch.randn(4, 5), [torch.randn(4, 5), torch.randn(4, 5)]
    expected = (mutual_loss(own, others[:1]) + mutual_loss(own, others[1:])) / 2
    assert mutual_loss(own, others).item() == pytest.approx(expected.item())


def test_a_peer_is_no_twin_and_each_network_learns_from_its_own_loss():
    student = network("shufflenet_v2_x0_5")
    dml = create("dml", context(student), {"peers": 2, "peer": "shufflenet_v2_x0_5"})
    first, second = dml.peers
    weight = "body.conv1.0.weight"
    assert not torch.equal(first.get_parameter(weight), student.get_parameter(weight))
    assert not torch.equal(first.get_parameter(weight), second.get_parameter(weight))
    step = take_step(dml, student)
    assert set(step.losses) == {"main", "peers"}
    assert {id(p) for g in dml.optimizer_groups() for p in g.parameters} == {id(p) for p in dml.parameters()}
    assert dml.extra_parameters() == []
    student.zero_grad()
    dml.zero_grad()
    dml.step_losses = None
    logits = student(torch.zeros(2, 3, 32, 32))
    (F.cross_entropy(logits, torch.tensor([0, 1])) + mutual_loss(logits, [first(torch.zeros(2, 3, 32, 32))])).backward()
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
