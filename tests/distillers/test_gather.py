"""Two real processes: relational losses see the batch of both, and their averaged gradient is the whole batch's."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.rkd import angle_loss, distance_loss
from kd_mlflow.distillers.sp import similarity_loss


def features() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=draw).double(), torch.randn(6, 5, generator=draw).double()


def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return similarity_loss(student, teacher) + distance_loss(student, teacher) + angle_loss(student, teacher)


def work(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    weight = torch.eye(4, dtype=torch.float64).requires_grad_()
    student, teacher = (part[rank * 3 : rank * 3 + 3] for part in features())
    value = loss(gathered(student @ weight), gathered(teacher))
    value.backward()
    dist.all_reduce(weight.grad)
    torch.save({"loss": value.detach(), "gradient": weight.grad / 2}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_without_processes_nothing_is_gathered():
    values = torch.ones(2, 3)
    assert gathered(values) is values


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    weight = torch.eye(4, dtype=torch.float64).requires_grad_()
    student, teacher = features()
    whole = loss(student @ weight, teacher)
    whole.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], whole.detach())
        torch.testing.assert_close(found["gradient"], weight.grad)
