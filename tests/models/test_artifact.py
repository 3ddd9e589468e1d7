"""The model folder: what was written comes back bit for bit, and nothing else does."""

from __future__ import annotations

import json

import pytest
import torch

import kd_mlflow
from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.models.artifact import load_model, read_run_id, read_spec, save_model
from kd_mlflow.models.export import export_onnx, export_pt2, usage
from kd_mlflow.models.zoo import build


@pytest.fixture
def folder(make, tmp_path):
    model = make(stem="standard", dropout=0.1)
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.dim() == 1:
            buffer.uniform_(0.5, 1.5)
    save_model(tmp_path / "model", model, run_id="r1")
    return model, tmp_path / "model"


def test_weights_and_recipe_come_back_bit_for_bit_and_train(folder):
    model, path = folder
    loaded = kd_mlflow.load_model(path)
    assert loaded.spec == model.spec == read_spec(path)
    assert loaded.run_id == read_run_id(path) == "r1"
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    loaded.train()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    assert loaded.head_parameters()[0].grad is not None


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_program_gives_the_modules_logits_for_any_batch(folder, count):
    model, path = folder
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    program = torch.export.load(path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(pixels), model.eval()(pixels))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 40, 40, dtype=torch.uint8)])
def test_the_program_refuses_other_types_and_sizes(folder, wrong):
    program = torch.export.load(folder[1] / "model.pt2").module()
    with pytest.raises((RuntimeError, AssertionError), match=r"Expected: Byte|size"):
        program(wrong)


def test_writing_again_replaces_the_folder_and_leaves_nothing_beside_it(folder, make):
    _, path = folder
    save_model(path, make(seed=8), program=False)
    assert sorted(file.name for file in path.iterdir()) == ["model.json", "model.safetensors"]
    assert [file.name for file in path.parent.iterdir()] == ["model"]


@pytest.mark.fault("a file of a model folder is altered or missing", "refused by name; nothing of it is executed")
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2"])
def test_an_altered_or_missing_file_is_named(folder, name):
    _, path = folder
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=name):
        load_model(path)
    (path / name).unlink()
    with pytest.raises(InputError, match=name):
        load_model(path)


@pytest.mark.fault("a model.json from a stranger", "refused in a sentence before anything is allocated")
@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["digests"].update({"../../etc/passwd": "0"}),
        lambda d: d["digests"].clear(),
        lambda d: d["spec"].update(architecture="resnet18"),
        lambda d: d["spec"].update(image_size=10**9),
        lambda d: d["spec"].update(std=[0, 1, 1]),
        lambda d: d.update(format=99),
        lambda d: d.update(code="import os"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, change):
    _, path = folder
    description = json.loads((path / "model.json").read_text())
    change(description)
    (path / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError):
        load_model(path)


def test_a_persons_files_are_never_replaced(make, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"a cat")
    with pytest.raises(InputError, match=r"cat\.jpg"):
        save_model(tmp_path / "photos", make(), program=False)
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_weights_that_stand_under_two_names_are_written_and_read(make, tmp_path):
    model = make("tests.models.networks:tied")
    save_model(tmp_path / "model", model, program=False)
    loaded = load_model(tmp_path / "model")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.eval()(pixels), model.eval()(pixels))


@pytest.mark.fault("a model.json nested without end", "refused in a sentence")
def test_a_description_nested_without_end_is_refused(tmp_path):
    (tmp_path / "model.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(tmp_path)


def test_exports_agree_with_the_module(folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model, _ = folder
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-4
    assert export_pt2(model, tmp_path / "model.pt2") < 1e-6


def test_exported_files_say_how_they_are_used(make, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = make("tests.models.networks:tied", classes=3, value_range=(0, 4095))
    model = build(model.spec.model_copy(update={"classes": ("chat", "Hündin, groß", '猫 "\\')}), seed=0)
    model.run_id = "r1"
    export_onnx(model, tmp_path / "model.onnx")
    export_pt2(model, tmp_path / "model.pt2")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    content = session.get_modelmeta().custom_metadata_map
    extra = {"usage.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["usage.json"]) == content == usage(model)
    assert content.pop("run_id") == "r1"
    facts = {name: json.loads(text) for name, text in content.items()}
    assert facts["classes"] == ["chat", "Hündin, groß", '猫 "\\']
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (facts["input"]["name"], facts["output"]["name"]) == (given.name, answer.name) == ("images", "logits")
    assert (facts["input"]["shape"], facts["output"]["shape"]) == (given.shape, answer.shape)
    assert facts["input"] | {"type": "uint8", "layout": "NCHW", "color": "RGB", "range": [0, 255]} == facts["input"]
    assert facts["normalization"]["inside"] is True
    assert facts["normalization"]["mean"] == [0.5, 0.4, 0.3]
    assert (facts["preprocessing"]["resize_shortest_side"], facts["preprocessing"]["center_crop"]) == (37, 32)
    assert facts["value_range"] == [0, 4095]
    text = onnx.load(tmp_path / "model.onnx").doc_string
    for part in ("3 classes", "uint8 RGB pixels from 0 to 255", "[batch, 3, 32, 32]", "normalization is inside"):
        assert part in text


@pytest.mark.fault("a model.json whose range of values is none", "refused in a sentence")
def test_a_range_is_two_numbers_that_rise_and_that_of_16_bits_where_there_is_none(make, tmp_path):
    save_model(tmp_path / "model", make("tests.models.networks:tied"), program=False)
    file = tmp_path / "model" / "model.json"
    description = json.loads(file.read_text())
    for wrong in ([0, 0], [5, 4], [0], [0, 2**32], [-(2**31) - 1, 0], "0", None):
        description["spec"]["value_range"] = wrong
        file.write_text(json.dumps(description))
        with pytest.raises(InputError, match=r"model\.json does not describe a model"):
            load_model(file.parent)
    del description["spec"]["value_range"]  # as in folders of earlier versions
    file.write_text(json.dumps(description))
    assert load_model(file.parent).spec.value_range == (0, 65535)


def test_the_operator_set_can_be_chosen(make, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    export_onnx(make("tests.models.networks:tied"), tmp_path / "new" / "model.onnx", opset=20)
    assert onnx.load(tmp_path / "new" / "model.onnx").opset_import[0].version == 20


def test_an_export_that_disagrees_leaves_no_file(make, tmp_path):
    with pytest.raises(KdMlflowError, match="other logits"):
        export_pt2(make("tests.models.networks:never_a_number"), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
