"""The teacher cache: equal to a live teacher, filled once, refused when it is not what the teacher gives."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch

from kd_mlflow.config import DistillConfig
from kd_mlflow.data.loading import samples_per_epoch, training_batches, training_view
from kd_mlflow.data.store import prepare
from kd_mlflow.errors import GuardError, KdMlflowError
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.taps import Outputs
from kd_mlflow.models.zoo import build
from kd_mlflow.training.cache import CacheFolder, weights_digest
from kd_mlflow.training.records import Codec
from kd_mlflow.training.teachers import CachedTeacher, LiveTeacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory, photos):
    return prepare(DistillConfig(data=str(photos), image_size=32), tmp_path_factory.mktemp("home"))


class Counting(LiveTeacher):
    """A live teacher that knows how many images it saw."""

    seen = 0

    def __call__(self, batch):
        self.seen += len(batch.images)
        return super().__call__(batch)


def teacher(needs=frozenset({"logits"}), seed=5) -> Counting:
    spec = ModelSpec(
        architecture="shufflenet_v2_x0_5", classes=("a", "b", "c"), image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    return Counting(build(spec, seed=seed), needs, CPU, "traced")


def cached(store, root, live, precision="float16", batch_size=8, limit=10**9, pooled=0) -> CachedTeacher:
    config, places = DistillConfig(), store.splits["train"]
    codec = Codec(3, pooled, precision)
    facts = {"teacher": weights_digest(live.tapped.model)}
    return CachedTeacher(
        live,
        lambda: CacheFolder.of(root, facts, codec, len(places), limit),
        places,
        samples_per_epoch(store, batch_size),
        lambda chosen, epoch: training_view(store, config, chosen, seed=0, epoch=epoch, device=CPU),
    )


def epoch_of(store, source, epoch: int, batch_size=8) -> list[Outputs]:
    batches = training_batches(store, DistillConfig(), batch_size=batch_size, seed=0, epoch=epoch, device=CPU)
    return [source(batch) for batch in batches]


def logits(outputs: list[Outputs]) -> torch.Tensor:
    return torch.cat([one.logits for one in outputs])


def test_in_float32_what_is_kept_is_bit_for_bit_what_the_teacher_gives(store, tmp_path):
    live = teacher()
    plain = [logits(epoch_of(store, live, epoch)) for epoch in (1, 2)]
    filling = cached(store, tmp_path, teacher(), "float32")
    reading = cached(store, tmp_path, teacher(), "float32")
    for source in (filling, reading):
        for epoch in (1, 2):
            assert torch.equal(logits(epoch_of(store, source, epoch)), plain[epoch - 1])
    # Every sample once in each epoch, also the four that no batch of eight holds.
    assert filling.live.seen == 2 * len(store.splits["train"])
    # One batch is held against the teacher, the rest costs nothing.
    assert reading.live.seen == 8


def test_in_float16_whoever_fills_it_trains_on_the_same_numbers_as_whoever_reads_it(store, tmp_path):
    filling, reading = (cached(store, tmp_path, teacher()) for _ in range(2))
    first, second = logits(epoch_of(store, filling, 1)), logits(epoch_of(store, reading, 1))
    assert torch.equal(first, second)
    live = logits(epoch_of(store, teacher(), 1))
    assert not torch.equal(first, live)
    torch.testing.assert_close(first, live, rtol=1e-3, atol=1e-3)


def test_another_batch_size_reads_the_same_records(store, tmp_path):
    epoch_of(store, cached(store, tmp_path, teacher()), 1)
    reading = cached(store, tmp_path, teacher(), batch_size=12)
    live = logits(epoch_of(store, teacher(), 1, 12))
    torch.testing.assert_close(logits(epoch_of(store, reading, 1, 12)), live, rtol=1e-3, atol=1e-3)
    assert reading.live.seen == 12


def test_pooled_features_are_kept_when_a_method_needs_them(store, tmp_path):
    needs = frozenset({"logits", "pooled"})
    live = epoch_of(store, teacher(needs), 1)
    filling, reading = (cached(store, tmp_path, teacher(needs), "float32", pooled=1024) for _ in range(2))
    for source in (filling, reading):
        found = epoch_of(store, source, 1)
        assert all(torch.equal(one.pooled, other.pooled) for one, other in zip(found, live, strict=True))


def test_while_one_fills_an_epoch_others_ask_the_teacher_and_get_the_same(store, tmp_path):
    batches = list(training_batches(store, DistillConfig(), batch_size=8, seed=0, epoch=1, device=CPU))
    first, second = (cached(store, tmp_path, teacher()) for _ in range(2))
    pairs = [(first(batch), second(batch)) for batch in batches]
    assert all(torch.equal(one.logits, other.logits) for one, other in pairs)
    assert (first.writer, second.writer) == (None, None)
    assert len(list(tmp_path.glob("*/epoch-*.bin"))) == 1


@pytest.mark.fault(
    "a process dies while it fills the teacher cache",
    "nothing half-filled is read; the next one fills it",
)
def test_an_epoch_that_was_cut_off_leaves_nothing_and_is_filled_by_the_next(store, tmp_path):
    batches = list(training_batches(store, DistillConfig(), batch_size=8, seed=0, epoch=1, device=CPU))
    cut = cached(store, tmp_path, teacher())
    cut(batches[0])
    assert not list(tmp_path.glob("*/epoch-*.bin"))
    cut.writer.lock.release()  # as the system does for a process that dies
    whole = cached(store, tmp_path, teacher())
    epoch_of(store, whole, 1)
    assert [file.suffix for file in sorted(tmp_path.glob("*/*epoch-00001.*"))] == [".bin", ".json", ".lock"]


@pytest.mark.fault("a file of the teacher cache is cut off or altered", "it is not read, and written anew")
@pytest.mark.parametrize("harm", ["flip", "cut", "no sidecar"])
def test_a_damaged_file_is_not_read_but_filled_anew(store, tmp_path, harm, caplog):
    epoch_of(store, cached(store, tmp_path, teacher()), 1)
    (file,) = tmp_path.glob("*/epoch-*.bin")
    whole = file.read_bytes()
    if harm == "flip":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm == "cut":
        file.write_bytes(whole[:-1])
    else:
        file.with_suffix(".json").unlink()
    again = cached(store, tmp_path, teacher())
    with caplog.at_level("WARNING", logger="kd_mlflow"):
        epoch_of(store, again, 1)
    assert ("teacher cache" in caplog.text) == (harm != "no sidecar")
    assert again.live.seen == len(store.splits["train"])
    assert file.read_bytes() == whole


@pytest.mark.fault(
    "the teacher cache holds what the teacher does not say",
    "an error with its likely cause, before the first step counts",
)
def test_records_that_the_teacher_does_not_give_are_an_error_with_its_cause(store, tmp_path):
    epoch_of(store, cached(store, tmp_path, teacher()), 1)
    (file,) = tmp_path.glob("*/epoch-*.bin")
    records = np.fromfile(file, np.float16) + np.float16(1)
    records.tofile(file)
    sidecar = file.with_suffix(".json")
    sidecar.write_text(json.dumps({"crc32": zlib.crc32(records), "torch": "1.0"}))
    with pytest.raises(KdMlflowError, match=r"a logit differs by .*it was written by torch 1\.0.*Remove the folder"):
        epoch_of(store, cached(store, tmp_path, teacher()), 1)


def test_another_teacher_has_another_folder(store, tmp_path):
    for seed in (5, 6):
        epoch_of(store, cached(store, tmp_path, teacher(seed=seed)), 1)
    assert len(list(tmp_path.glob("*/epoch-*.bin"))) == 2


def test_beyond_its_limit_the_teacher_is_asked(store, tmp_path, caplog):
    size = len(store.splits["train"]) * 6
    source = cached(store, tmp_path, teacher(), limit=int(1.5 * size))
    with caplog.at_level("WARNING", logger="kd_mlflow"):
        found = [logits(epoch_of(store, source, epoch)) for epoch in (1, 2)]
    assert [file.name for file in tmp_path.glob("*/epoch-*.bin")] == ["epoch-00001.bin"]
    assert "--cache-gb" in caplog.text
    assert [len(one) for one in found] == [32, 32]


@pytest.mark.fault("teacher outputs that float16 does not hold", "the training stops and says what to do")
def test_numbers_that_float16_does_not_hold_stop_the_training(store, tmp_path):
    live = teacher()
    live.forward = lambda images: Outputs(torch.full((len(images), 3), 1e5))
    with pytest.raises(GuardError, match="--cache-precision float32"):
        epoch_of(store, cached(store, tmp_path, live), 1)


def test_of_many_classes_the_largest_logits_are_exact_and_the_rest_keeps_its_mass():
    codec = Codec(1000, 0, "float32")
    given = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0)) * 4
    assert codec.dtype.itemsize == 50 * 4 + 4 + 50 * 2
    back = codec.decode(codec.encode(Outputs(given)), CPU).logits
    top = given.topk(50, dim=1)
    assert torch.equal(back.gather(1, top.indices), top.values)
    torch.testing.assert_close(back.logsumexp(dim=1), given.logsumexp(dim=1))
    torch.testing.assert_close(back.softmax(dim=1).sum(dim=1), torch.ones(16))
    again = codec.decode(codec.encode(Outputs(back)), CPU).logits
    assert torch.equal(again.gather(1, top.indices), top.values)
    assert Codec(100, 0, "float16").dtype.itemsize == 200
    assert Codec(70_000, 8, "float16").dtype.itemsize == 100 + 2 + 200 + 16
