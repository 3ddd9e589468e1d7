"""How batches are shared and cut: never one image for BatchNorm, never parts that change a loss."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from kd_mlflow.config import DistillConfig, Recipe, recipe, resolve
from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.registry import create
from kd_mlflow.entrypoints.cutting import check_images, check_parts, in_more_parts, parts_sentence
from kd_mlflow.entrypoints.search import _hardest
from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.search.space import Parameter, Space
from tests.conftest import TINY
from tests.distillers.networks import context, network
from tests.entrypoints.tiny import make, plain

NORMED, UNNORMED = make(3), plain(3)
STUDENT = ["student", "--student", TINY, "--image-size", "32", "--epochs", "1"]


def plan(method: str = "kd", options: dict | None = None, **given: int) -> Recipe:
    config = resolve(DistillConfig, {"data": "photos", **given})
    return recipe(config, "student", "float32", options or {}).model_copy(update={"method": method})


@pytest.mark.parametrize(
    ("images", "parts", "smallest", "sizes"),
    [
        (3, 2, 2, [3]),
        (3, 2, 1, [2, 1]),
        (5, 4, 2, [3, 2]),
        (7, 3, 2, [3, 2, 2]),
        (8, 50, 2, [2, 2, 2, 2]),
        (1, 4, 2, [1]),
        (1, 4, 1, [1]),
    ],
)
def test_no_part_is_smaller_than_the_network_takes(images, parts, smallest, sizes):
    places = torch.arange(images)
    cut = Batch(torch.zeros(images, 3, 2, 2), places, places).split(parts, smallest)
    assert [len(part.labels) for part in cut] == sizes
    assert torch.cat([part.index for part in cut]).tolist() == list(range(images))


@pytest.mark.parametrize(
    ("given", "images", "said"),
    [
        ({"batch_size": 1}, 40, "--batch-size 1 gives resnet18 one image a step, and its BatchNorm needs two or more"),
        ({"batch_size": 64}, 1, "training split has one image.*BatchNorm needs two or more; add images"),
        ({"batch_size": 4, "devices": 4}, 40, "4 images cannot be shared equally by 4 processes, two images"),
        ({"batch_size": 64, "devices": 2}, 3, "3 images cannot be shared equally by 2 processes"),
    ],
)
def test_one_image_for_batch_norm_is_refused_and_taken_without(given, images, said):
    with pytest.raises(InputError, match=said):
        check_images(plan(**given), images, NORMED)
    if images % given.get("devices", 1) == 0:
        check_images(plan(**given), images, UNNORMED)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
def test_every_batch_norm_counts_and_no_other_norm(kind):
    with pytest.raises(InputError, match="BatchNorm"):
        check_images(plan(batch_size=1), 40, nn.Sequential(UNNORMED, kind(4)))
    check_images(plan(batch_size=1), 40, nn.Sequential(UNNORMED, nn.LayerNorm(4), nn.GroupNorm(2, 4)))


def test_batch_norm_that_a_method_brings_counts():
    """Connectors of fitnet stand on maps of the student, whatever its own layers are."""
    teacher, student = network("tests.distillers.small:deep"), network("tests.distillers.small:shallow")
    fitnet = create("fitnet", context(student, teacher), {})
    with pytest.raises(InputError, match="BatchNorm"):
        check_images(plan("fitnet", batch_size=1), 40, UNNORMED, fitnet)


@pytest.mark.parametrize("method", ["sp", "pkt", "rkd", "dist", "mlkd"])
def test_a_relation_needs_two_images(method):
    with pytest.raises(InputError, match=f"the method '{method}' sees them together; give --batch-size 2"):
        check_images(plan(method, batch_size=1), 40, UNNORMED)


@pytest.mark.parametrize(("method", "options"), [("sp", {}), ("crd", {}), ("lskd", {"host": "mlkd"})])
@pytest.mark.fault("memory does not hold a batch that must not be cut", "exit code 3, and why")
def test_more_parts_for_a_method_that_sees_the_batch_together_end_in_a_sentence(method, options):
    session = SimpleNamespace(store=SimpleNamespace(splits={"train": range(40)}))
    with pytest.raises(InputError, match=f"'{method}' sees the images of a batch together"):
        check_parts(plan(method, options, accumulate=2))
    check_parts(plan(method, options))
    with pytest.raises(GuardError, match=f"a step of 16 images.*'{method}' sees its images together"):
        in_more_parts(session, None, plan(method, options, batch_size=16), NORMED)


def test_a_host_without_relations_may_be_cut():
    check_parts(plan("lskd", {"host": "dkd"}, accumulate=4))


@pytest.mark.parametrize(
    ("given", "network", "parts"),
    [
        ({"batch_size": 7}, NORMED, [3, None]),
        ({"batch_size": 7}, UNNORMED, [2, 4, 7, None]),
        ({"batch_size": 64, "devices": 2}, NORMED, [2, 4, 5, None]),
    ],
)
@pytest.mark.fault("memory holds no part of a batch", "twice as many parts, down to the smallest; then exit code 3")
def test_parts_are_doubled_down_to_the_smallest_that_the_network_takes(given, network, parts):
    """Of 20 images; 7 with BatchNorm are cut into 3, 2, 2."""
    tags: dict[str, str] = {}
    said: list[str] = []
    session = SimpleNamespace(
        store=SimpleNamespace(splits={"train": range(20)}),
        device=torch.device("cpu"),
        terminal=SimpleNamespace(warn=said.append),
    )
    writer, now = SimpleNamespace(tags=tags.update), plan(**given)
    if network is NORMED and given["batch_size"] == 7:
        now = now.model_copy(update={"accumulate": 2})
    for more in parts:
        if more is None:
            with pytest.raises(GuardError, match=r"does not hold a step of [1-3] images"):
                in_more_parts(session, writer, now, network)
        else:
            now = in_more_parts(session, writer, now, network)
            assert (now.accumulate, tags["kd.accumulate"]) == (more, str(more))
            assert f"(--accumulate {more})" in said[-1]


def test_a_search_checks_its_smallest_batch_and_every_choice_of_a_method():
    """One of the hosts of lskd may not be cut, whichever is the default."""
    batches = Parameter("batch_size", "choice", choices=(8, 1, 4))
    hosts = Parameter("lskd-host", "choice", choices=("kd", "mlkd"), method="lskd")
    dkd = Parameter("dkd-beta", "float", 1.0, 8.0, method="dkd")
    found = _hardest(plan("lskd", {"host": "kd"}, accumulate=2), Space((batches, hosts, dkd)))
    assert [one.method_options["host"] for one in found] == ["kd", "mlkd", "kd"]
    assert {one.batch_size for one in found} == {1}
    with pytest.raises(InputError, match="'lskd' sees the images of a batch together"):
        check_parts(found[1])
    (same,) = _hardest(plan("kd"), Space((Parameter("batch_size", "int", 16, 64),)))
    assert same.batch_size == 16


def test_fewer_parts_than_were_asked_for_are_said():
    said = parts_sentence(plan(batch_size=3, accumulate=2), 40, NORMED)
    assert said == "--accumulate 2 cuts 3 images into 1 part, since BatchNorm needs two images or more in each."
    assert "5 images into 2 parts" in parts_sentence(plan(accumulate=4), 5, NORMED)
    assert "2 images into 2 parts" in parts_sentence(plan(batch_size=2, accumulate=4), 40, UNNORMED)
    assert not parts_sentence(plan(batch_size=8, accumulate=4), 40, NORMED)


def test_a_batch_of_three_in_two_parts_trains_and_one_image_is_refused_before(place, photos):
    out = place.run(*STUDENT, "--data", str(photos), "--batch-size", "3", "--accumulate", "2", code=0)
    assert "accuracy" in out
    said = place.run(*STUDENT, "--data", str(photos), "--batch-size", "1", code=2)
    assert "its BatchNorm needs two or more; give --batch-size 2 or more." in said
    assert [run.info.status for run in MlflowClient(place.uri).search_runs(["0", "1"])] == ["FINISHED"]
