"""Checkpoints of every habit: nested, prefixed, under any ending, with harmless things beside their tensors."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import gzip
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd_mlflow.errors import InputError
from kd_mlflow.models.weights import load_weights, read_weights
from kd_mlflow.models.zoo import IMAGENET_MEAN, IMAGENET_STD, normalization_for
from tests.entrypoints.tiny import make

DATA = (0.1,) * 3


def state(seed: int = 4, classes: int = 5) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(classes).state_dict()


def loaded(file: Path, body: nn.Module | None = None, side: str = "") -> dict[str, torch.Tensor]:
    body = body or make(5)
    load_weights(body, read_weights(file), str(file), {}, (), side)
    return body.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def prefixed(prefix: str, seed: int = 4) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state(seed).items()}


NESTED = [
    "state_dict", "model", "model_state_dict", "net", "weights", "state_dict_ema", "model_ema", "student", "teacher",
    "ema", "network", "generator", "params_ema", "whatever",
]  # fmt: skip


@pytest.mark.parametrize("key", NESTED)
def test_a_state_dict_is_read_under_any_key(tmp_path, key):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"epoch": 3, "optimizer": optimizer, key: state()}, tmp_path / "w.pth.tar")
    assert same(loaded(tmp_path / "w.pth.tar"), state())


@pytest.mark.parametrize(
    "prefix", ["backbone.", "encoder.", "net.", "student.model.", "module.", "_orig_mod.module.", "0.", "a_b.c."]
)
def test_any_one_prefix_that_then_fits_whole_is_taken_off(tmp_path, prefix):
    content = {"state_dict": {**prefixed(prefix), "criterion.weight": torch.ones(5)}}
    torch.save(content, tmp_path / "last.ckpt")
    assert same(loaded(tmp_path / "last.ckpt"), state())


def test_a_network_that_was_saved_without_its_wrapper_and_in_parts_fits(tmp_path):
    wrapper = nn.Sequential(collections.OrderedDict(inner=nn.Sequential(collections.OrderedDict(net=make(5)))))
    torch.save(state(), tmp_path / "inner.pt")
    found = loaded(tmp_path / "inner.pt", wrapper)
    assert same({name.removeprefix("inner.net."): value for name, value in found.items()}, state())
    parts = nn.ModuleDict({"encoder": make(5), "head": make(3)})
    saved = {"encoder": state(1), "head": state(2, classes=3), "epoch": 1}
    torch.save(saved, tmp_path / "parts.pt")
    found = loaded(tmp_path / "parts.pt", parts)
    assert same({n.removeprefix("head."): v for n, v in found.items() if n.startswith("head.")}, saved["head"])


@pytest.mark.parametrize("name", ["w.ckpt", "w.pth.tar", "pytorch_model.bin", "w.pth", "W.PT", "w.pkl", "w.tar", "w"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_decides_and_not_the_ending(tmp_path, name, kind):
    file = tmp_path / name
    if kind == "safetensors":
        save_file(state(), file)
    else:
        torch.save({"net": state()}, file, _use_new_zipfile_serialization=kind == "zip")
    assert same(loaded(file), state())


HARMLESS = {
    "args": argparse.Namespace(lr=0.1, out=Path("runs")), "space": types.SimpleNamespace(a=1),
    "best": np.float64(0.5), "array": np.ones((2, 3)), "when": datetime.datetime(2026, 1, 1),
    "default": collections.defaultdict(list, {"a": [1]}), "queue": collections.deque([1, 2]), "steps": range(3),
    "names": frozenset(["a"]), "partial": functools.partial(int, base=2), "class": torch.optim.Adam,
    "path": PurePosixPath("a/b"), "rng": np.random.default_rng(0).bit_generator.state, "float": np.float32,
}  # fmt: skip


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", HARMLESS)
def test_options_paths_and_numpy_numbers_beside_the_tensors_do_no_harm(tmp_path, beside, new):
    content = {"hyper_parameters": {beside: HARMLESS[beside]}, "state_dict": state()}
    before = set(torch.serialization.get_safe_globals())
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=new)
    assert same(loaded(tmp_path / "w.ckpt"), state())
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_loss_among_the_options_does_no_harm(tmp_path):
    torch.save({"hyper_parameters": {"loss": nn.CrossEntropyLoss()}, "state_dict": state()}, tmp_path / "w.ckpt")
    assert same(loaded(tmp_path / "w.ckpt"), state())


def test_settings_of_a_framework_that_is_not_installed_are_passed_over(tmp_path, monkeypatch):
    class AttributeDict(dict):
        pass

    AttributeDict.__module__, AttributeDict.__qualname__ = "pytorch_lightning.utilities.parsing", "AttributeDict"
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    module.AttributeDict = AttributeDict
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.utilities"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"hyper_parameters": AttributeDict(lr=0.1), "state_dict": prefixed("model.")}, tmp_path / "w.ckpt")
    assert same(loaded(tmp_path / "w.ckpt"), state())


class Config:
    """A class of a person's own among the options."""

    def __setstate__(self, values: dict) -> None:
        raise AssertionError("the file's code ran")

    def __getstate__(self) -> dict:
        return {"rate": 0.1}


@pytest.mark.fault("a class of its own in a checkpoint", "refused with its name and the step that helps; it never runs")
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_class_of_its_own_is_refused_by_name(tmp_path, new):
    torch.save({"config": Config(), "state_dict": state()}, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"test_weight_files\.Config\).*torch\.save\(model\.state_dict\(\), FILE\)"):
        read_weights(tmp_path / "w.pt")


def test_a_whole_network_is_refused_with_the_step_that_helps(tmp_path):
    torch.save(make(5), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"Sequential\).*state_dict"):
        read_weights(tmp_path / "w.pt")


def test_of_several_that_fit_the_own_side_then_averaged_weights_go_first_and_it_is_said(tmp_path, caplog):
    torch.save({"model": state(1), "model_ema": state(2)}, tmp_path / "ema.pth")
    assert same(loaded(tmp_path / "ema.pth"), state(2))
    assert "model_ema is taken, not model " in caplog.text
    torch.save({"student": state(1), "teacher": state(2)}, tmp_path / "both.pth")
    assert same(loaded(tmp_path / "both.pth", side="teacher"), state(2))
    assert same(loaded(tmp_path / "both.pth", side="student"), state(1))
    torch.save({"state_dict": {**prefixed("net_a.", 1), **prefixed("net_b.", 2)}}, tmp_path / "order.pth")
    assert same(loaded(tmp_path / "order.pth"), state(1))
    caplog.clear()
    torch.save({"model": state(1), "copy": state(1)}, tmp_path / "same.pth")
    loaded(tmp_path / "same.pth")
    assert not caplog.text


def test_what_fits_whole_goes_before_what_comes_first(tmp_path):
    torch.save({"model_ema": state(1, classes=7), "discriminator": state(2)}, tmp_path / "w.pth")
    assert same(loaded(tmp_path / "w.pth"), state(2))


def test_the_sentence_names_what_was_looked_at(tmp_path):
    content = {"model": {"conv.weight": torch.ones(1)}, "model_ema": {"conv.weight": torch.ones(2)}}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"w\.pth.*conv\.weight.*looked at model \(1 tensors\), model_ema \(1 tensors\)"
    ):
        loaded(tmp_path / "w.pth")
    torch.save({"net": state(classes=7)}, tmp_path / "seven.pth")
    with pytest.raises(InputError, match=r"shapes differ in net in 5\.weight \[7, 8\] for \[5, 8\]"):
        loaded(tmp_path / "seven.pth")


def test_a_larger_network_that_holds_the_names_of_a_smaller_one_does_not_fit(tmp_path):
    torch.save({"net": {**state(), "6.weight": torch.ones(2, 5)}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"unexpected 6\.weight"):
        loaded(tmp_path / "w.pth")


@pytest.mark.fault("a file that is no weights file", "a sentence says what it is and the step that helps")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (json.dumps({"weight_map": {}}).encode(), "JSON"),
        (gzip.compress(b"x"), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (pickle.dumps({"weight": np.ones(3)}), "refused"),
        (b"no weights at all", "cannot be read|refused"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, content, said):
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"w\.bin.*({said})"):
        read_weights(tmp_path / "w.bin")


@pytest.mark.filterwarnings("ignore")
def test_programs_folders_and_other_archives_are_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "docs.pth", "w") as archive:
        archive.writestr("docs/a.txt", "text")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    for name, said in [
        ("script.pt", "TorchScript"), ("program.pt2", "torch.export"), ("docs.pth", "zip archive"),
        ("tensor.pt", "a tensor"), ("", "is a folder"), ("absent.pt", "does not exist"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": prefixed("model."), "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        {"net": state(), "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
        {**prefixed("body."), "mean": torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1),
         "std": torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)},
    ],
    ids=["lists", "0..255", "ours"],
)  # fmt: skip
def test_mean_and_std_that_a_file_carries_are_its_normalization(tmp_path, content):
    torch.save(content, tmp_path / "w.CKPT")
    mean, std = normalization_for("auto", "tests.entrypoints.tiny:make", str(tmp_path / "w.CKPT"), DATA, DATA)
    assert mean == pytest.approx(IMAGENET_MEAN, abs=1e-6)
    assert std == pytest.approx(IMAGENET_STD, abs=1e-6)
    assert same(loaded(tmp_path / "w.CKPT"), state())


def test_a_networks_own_buffers_are_no_normalization_of_the_file(tmp_path):
    own = {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1), "net.weight": torch.ones(2)}
    torch.save({"state_dict": own}, tmp_path / "w.pt")
    assert normalization_for("auto", "tests.entrypoints.tiny:make", str(tmp_path / "w.pt"), DATA, DATA) == (DATA, DATA)
