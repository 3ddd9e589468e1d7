"""Options: precedence, bounds, and one recipe whichever command it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kd_mlflow.config import (
    COMMANDS,
    CompareConfig,
    DistillConfig,
    SearchConfig,
    StudentConfig,
    TeacherConfig,
    preset_names,
    recipe,
    resolve,
    to_yaml,
)
from kd_mlflow.errors import InputError


def test_command_line_beats_file_beats_preset_beats_default(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 3\nbatch_size: 16\n")
    config = resolve(DistillConfig, {"epochs": 2, "data": "photos"}, "paper", file)
    assert (config.epochs, config.batch_size, config.teacher_weights) == (2, 16, "imagenet")
    assert config.label_smoothing == 0.0


def test_digits_without_a_preset_are_quick():
    assert resolve(SearchConfig, {}).image_size == 32
    assert resolve(DistillConfig, {"data": "photos"}).image_size == 224
    assert resolve(DistillConfig, {"data": "photos"}).label_share == 1.0


def test_distill_without_method_and_file_is_the_demonstration(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 3\n")
    assert resolve(DistillConfig, {}).label_share == 0.1
    assert resolve(DistillConfig, {"epochs": 2}).label_share == 0.1
    for others in ({"given": {"method": "dkd"}}, {"given": {}, "file": file}, {"given": {}, "preset": "quick"}):
        assert resolve(DistillConfig, **others).label_share == 1.0
    assert resolve(StudentConfig, {}).label_share == 1.0
    assert resolve(DistillConfig, {"label_share": 0.5}).label_share == 0.5


def test_the_teacher_has_all_labels_whatever_the_student_has():
    config = resolve(DistillConfig, {"label_share": 0.5})
    assert recipe(config, "teacher", "float32").label_share == 1.0
    assert recipe(config, "control", "float32").label_share == 0.5


def test_the_first_recipe_is_kept_option_by_option():
    config = resolve(DistillConfig, {}, file=Path(__file__).parents[1] / "benchmarks" / "before.yaml")
    assert (config.teacher_arch, config.student, config.epochs, config.image_size) == ("resnet34", "resnet18", 1, 32)
    assert (config.batch_size, config.learning_rate, config.label_share) == (64, 1e-3, 1.0)
    assert (config.teacher_epochs, config.teacher_learning_rate) == (None, None)
    assert (config.temperature, config.alpha) == (4.0, 0.7)


def test_paper_is_the_source_report():
    config = resolve(DistillConfig, {"data": "photos"}, "paper")
    assert (config.image_size, config.batch_size, config.epochs) == (224, 64, 50)
    assert (config.optimizer, config.learning_rate, config.weight_decay) == ("adam", 1e-3, 1e-5)
    assert (config.schedule, config.step_size, config.gamma) == ("step", 10, 0.1)
    assert (config.temperature, config.alpha, config.augmentation) == (4.0, 0.7, "none")
    assert (config.teacher_weights, config.student_weights, config.normalization) == ("imagenet", "none", "data")
    assert recipe(config, "teacher", "float32").weight_decay == 0.0


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_preset_serves_every_command(preset, command):
    assert resolve(COMMANDS[command], {"data": "photos"}, preset).data in ("photos", ("photos",))


def test_a_presets_method_options_are_nothing_to_another_method():
    assert resolve(DistillConfig, {"data": "photos"}, "cifar").alpha == 0.9
    assert resolve(DistillConfig, {"data": "photos", "method": "kd"}, "cifar").alpha == 0.9
    assert resolve(DistillConfig, {"data": "photos", "method": "dkd"}, "cifar").alpha is None
    given = {"data": "photos", "method": "dkd", "temperature": 2.0}
    assert resolve(DistillConfig, given, "cifar").temperature == 2.0


def test_several_names_come_with_commas_or_as_a_list():
    config = resolve(CompareConfig, {"data": "a,b", "methods": ("kd", "dkd"), "teacher": "auto"})
    assert (config.data, config.methods, config.teacher) == (("a", "b"), ("kd", "dkd"), ("auto",))
    cell = config.model_copy(update={"method_options": {"dkd": {"beta": 2}}}).cell("b", "dkd", 3)
    assert (cell.data, cell.method, cell.seed, cell.method_options) == ("b", "dkd", 3, {"beta": 2})


def test_resolved_config_reads_back_as_itself(tmp_path):
    config = resolve(DistillConfig, {"milestones": (3, 5), "data": "my photos: $(touch f)"}, "cifar")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert resolve(DistillConfig, {}, None, file) == config


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"alpha": 1.5}, "alpha"),
        ({"epochs": 0}, "epochs"),
        ({"image_size": 8}, "image-size"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_values_out_of_bounds_are_named(given, word):
    with pytest.raises(InputError, match=f"--{word}"):
        resolve(DistillConfig, given)


@pytest.mark.parametrize("text", ["epoch: 3", "- 1", "{", "!!python/object/apply:os.system [echo]"])
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError):
        resolve(DistillConfig, {}, None, file)


def test_the_teacher_inside_a_distillation_has_the_recipe_of_the_teacher_command():
    given = {"data": "photos", "epochs": 9, "teacher_epochs": 4, "teacher_learning_rate": 0.01}
    inside = recipe(resolve(DistillConfig, given), "teacher", "float32")
    alone = recipe(resolve(TeacherConfig, given), "teacher", "float32")
    assert inside == alone
    assert (inside.epochs, inside.learning_rate, inside.method) == (4, 0.01, "labels")


def test_the_control_is_the_student_without_its_teacher():
    config = resolve(DistillConfig, {"data": "photos", "teacher_epochs": 4})
    student, control = recipe(config, "student", "float32"), recipe(config, "control", "float32")
    differing = {name for name in type(student).model_fields if getattr(student, name) != getattr(control, name)}
    assert differing == {"role", "method"}
    assert control == recipe(resolve(StudentConfig, {"data": "photos"}), "control", "float32")


def test_every_option_has_a_help_and_a_panel():
    for model in COMMANDS.values():
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.json_schema_extra["panel"] or name == "method_options", name


def test_presets_are_mappings_of_known_options():
    for name in preset_names():
        assert isinstance(yaml.safe_load(to_yaml(resolve(DistillConfig, {"data": "x"}, name))), dict)


def test_what_a_preset_says_of_its_method_holds_in_a_comparison_too():
    config = resolve(CompareConfig, {"data": "photos", "methods": "kd,dkd"}, "cifar")
    single = resolve(DistillConfig, {"data": "photos"}, "cifar")
    assert config.method_options["kd"]["alpha"] == single.alpha == 0.9
    assert config.cell("photos", "dkd", 0).method_options == {}


def test_a_file_with_another_method_drops_what_the_preset_says_of_its_own(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("method: dkd\n")
    config = resolve(DistillConfig, {"data": "photos"}, "cifar", file)
    assert (config.method, config.temperature, config.alpha) == ("dkd", None, None)


@pytest.mark.fault("passwords in the URLs of options", "they are in no config.yaml, parameter or study")
def test_what_is_written_down_holds_no_place_and_so_no_password():
    config = SearchConfig(
        storage="postgresql://kd:hunter2@db/optuna",
        tracking_uri="https://me:hunter2@mlflow.example",
        checkpoints="ftp://me:hunter2@files.example/kd",
    )
    assert "hunter2" not in to_yaml(config)
    assert config.recorded().keys() == SearchConfig.model_fields.keys() - {
        "storage",
        "tracking_uri",
        "offline",
        "checkpoints",
    }
