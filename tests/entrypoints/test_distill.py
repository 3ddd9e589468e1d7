"""The main job, run as a person runs it: `mlflow run`, then the registry, then the student at work."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

import kd_mlflow
from kd_mlflow.config import resolve
from tests.conftest import QUICK, ROOT, TINY, Place, make_photos, make_place


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, photos) -> Place:
    """A store after `mlflow run . -e distill` on real JPEGs."""
    place = make_place(tmp_path_factory.mktemp("distilled") / "place")
    given = ["-P", f"data={photos}", "-P", "epochs=2", "-P", "batch-size=8", "-P", "image-size=32"]
    given += ["-P", "teacher-arch=shufflenet_v2_x1_0", "-P", "student=shufflenet_v2_x0_5", "-P", "label-smoothing=0.05"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mlflow")), "run", str(ROOT), "-e", "distill", "--env-manager", "local",
         "--experiment-name", "photos", *given],
        cwd=place.path, env=place.environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "it rests on one seed" in " ".join(done.stdout.split())  # the verdict stands below the table
    return place


@pytest.fixture(scope="module")
def client(distilled) -> MlflowClient:
    return MlflowClient(distilled.uri)


@pytest.fixture(scope="module")
def runs(distilled) -> dict[str, dict]:
    return {row["role"]: row for row in json.loads(distilled.run("runs", "--json"))}


def test_three_runs_are_finished_in_the_experiment_of_the_run_that_mlflow_made(distilled, client, runs):
    assert {role: row["status"] for role, row in runs.items()} == dict.fromkeys(
        ["teacher", "control", "student"], "FINISHED"
    )
    assert {row["experiment"] for row in runs.values()} == {"photos"}
    student = client.get_run(runs["student"]["run_id"])
    assert student.data.tags["mlflow.project.entryPoint"] == "distill"
    assert student.data.tags["kd.teacher_run_id"] == runs["teacher"]["run_id"]
    assert student.data.tags["kd.control_run_id"] == runs["control"]["run_id"]
    assert student.data.params["cfg.label_smoothing"] == "0.05"


def test_curves_have_a_point_an_epoch_and_the_terms_apart(client, runs):
    for role, row in runs.items():
        names = ["train/loss", "train/cross_entropy", "train/accuracy", "train/learning_rate", "train/images_per_s",
                 "val/loss", "val/accuracy", *(["train/kd"] if role == "student" else [])]  # fmt: skip
        for name in names:
            assert [p.step for p in client.get_metric_history(row["run_id"], name)] == [1, 2], (role, name)


def test_final_figures_agree_with_the_tables(client, runs, distilled):
    run_id = runs["student"]["run_id"]
    metrics = client.get_run(run_id).data.metrics
    evaluation = json.loads(Path(client.download_artifacts(run_id, "evaluation.json")).read_text())
    confusion = np.array(evaluation["confusion"])
    assert metrics["test/accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert metrics["test/weighted_recall"] == pytest.approx(metrics["test/accuracy"])
    assert metrics["test/macro_f1"] == pytest.approx(np.mean([row["f1"] for row in evaluation["per_class"]]))
    assert metrics["best/accuracy"] == max(
        point.value for point in client.get_metric_history(run_id, "val/accuracy"))  # fmt: skip
    control = client.get_run(runs["control"]["run_id"]).data.metrics
    assert metrics["test/accuracy_minus_control"] == pytest.approx(metrics["test/accuracy"] - control["test/accuracy"])
    assert metrics["generalisation_gap"] == pytest.approx(metrics["train_eval/accuracy"] - metrics["best/accuracy"])


def test_efficiency_is_measured_or_absent_with_a_reason(client, runs):
    for row in runs.values():
        metrics = client.get_run(row["run_id"]).data.metrics
        for name in ["parameters_total", "file_mib", "flops", "latency_ms_b1_median", "latency_ms_b1_p95",
                     "throughput_images_per_s", "inference_peak_memory_mib", "training_peak_memory_mib",
                     "training_seconds", "training_seconds_per_batch"]:  # fmt: skip
            assert metrics[f"efficiency/{name}"] > 0
        missing = json.loads(Path(client.download_artifacts(row["run_id"], "evaluation.json")).read_text())["missing"]
        if not torch.cuda.is_available():
            assert "NVIDIA" in missing["training_energy_j"]
            assert "efficiency/training_energy_j" not in metrics


def test_the_record_is_complete(client, runs):
    run_id = runs["student"]["run_id"]
    top = {item.path for item in client.list_artifacts(run_id)}
    assert {"config.yaml", "report.html", "evaluation.json", "environment.txt", "figures", "tables"} <= top
    figures = {Path(item.path).stem for item in client.list_artifacts(run_id, "figures")}
    assert figures == {
        "accuracy",
        "loss",
        "confusion",
        "confusion_normalised",
        "reliability",
        "per_class_f1",
        "samples",
    }
    (data,) = client.get_run(run_id).inputs.dataset_inputs
    assert len(data.dataset.digest) == 32
    assert json.loads(data.dataset.profile)["train"] == 36
    (model,) = client.get_run(run_id).outputs.model_outputs
    logged = client.get_logged_model(model.model_id)
    assert {metric.key for metric in logged.metrics} >= {"test/accuracy", "val/accuracy"}


def test_the_report_needs_no_network_and_names_all_three(client, runs):
    page = Path(client.download_artifacts(runs["student"]["run_id"], "report.html")).read_text()
    assert not re.search(r"""(src|href)=["']?(?!data:)\w""", page)
    assert "<script" not in page
    for word in ("Teacher (shufflenet_v2_x1_0)", "Control (shufflenet_v2_x0_5)", "rests on one seed", "data:image/png"):
        assert word in page


def test_the_config_of_the_run_repeats_it(distilled, client, runs, tmp_path):
    run_id = runs["student"]["run_id"]
    config = client.download_artifacts(run_id, "config.yaml", str(tmp_path))
    again = json.loads(distilled.run("distill", "--config", config, "--no-register-model", "--json"))
    first = client.get_run(run_id)
    assert again["run_id"] != run_id
    assert again["control"]["run_id"] == runs["control"]["run_id"]
    assert again["teacher"]["run_id"] == runs["teacher"]["run_id"]
    assert again["registered"] is None
    assert again["student"]["test"]["accuracy"] == first.data.metrics["test/accuracy"]
    repeated = client.get_run(again["run_id"])
    assert repeated.data.tags["kd.fingerprint"] == first.data.tags["kd.fingerprint"]
    assert repeated.data.tags["kd.weights_digest"] == first.data.tags["kd.weights_digest"]


def test_json_is_one_object_without_timing_in_the_quality(distilled, photos):
    out = distilled.run("distill", "--data", str(photos), *QUICK, "--epochs", "1", "--json")
    result = json.loads(out)
    assert {"run_id", "teacher", "control", "student", "registered"} <= set(result)
    for role in ("teacher", "control", "student"):
        assert {"run_id", "val", "test", "efficiency"} <= set(result[role])
        for split in ("val", "test"):
            assert not [name for name in result[role][split] if "second" in name or "latency" in name]
    assert result["registered"]["name"] == "photos-student"
    assert result["registered"]["version"] == 2
    report = MlflowClient(distilled.uri).download_artifacts(result["run_id"], "report.html")
    assert result["verdict"].startswith("The distilled student ")
    minus = result["student_minus_control"]["test"]
    assert minus["mean"] == pytest.approx(result["student"]["test"]["accuracy"] - result["control"]["test"]["accuracy"])
    assert f"{minus['first_alone']} to {minus['second_alone']}: p = {minus['p_value']:.2g}" in result["verdict"]
    recorded = MlflowClient(distilled.uri).get_run(result["run_id"]).data.metrics
    assert recorded["test/accuracy_minus_control_p_value"] == minus["p_value"]
    assert result["verdict"] in Path(report).read_text()


def test_the_student_is_pulled_trained_on_and_predicts(distilled, photos, tmp_path):
    folder = tmp_path / "student"
    distilled.run("pull", "photos-student/1", str(folder))
    model = kd_mlflow.load_model(folder)
    assert model.spec.classes == ("amber", "blue sky", "cyan")
    model.train()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    files = sorted((photos / "cyan").glob("*.jpg"))[:3]
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    out = json.loads(distilled.run("predict", str(folder), *map(str, files), str(tmp_path / "broken.jpg"),
                                   "--top-k", "2", "--json"))  # fmt: skip
    assert [Path(item["path"]).name for item in out["predictions"]] == [file.name for file in files]
    assert all(len(item["top"]) == 2 for item in out["predictions"])
    assert [Path(item["path"]).name for item in out["unreadable"]] == ["broken.jpg"]
    whole = json.loads(distilled.run("predict", str(folder), str(photos / "cyan"), "--json"))
    assert len(whole["predictions"]) == 20


def test_every_loader_names_the_same_classes_without_pickle(distilled, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    # Not set_tracking_uri, which would hold for every later test of the process.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", distilled.uri)
    folder = tmp_path / "student"
    distilled.run("pull", "models:/photos-student/1", str(folder))
    file = sorted((photos / "amber").glob("*.jpg"))[0]
    ours = json.loads(distilled.run("predict", str(folder), str(file), "--json"))["predictions"][0]["top"][0]
    served = mlflow.pyfunc.load_model("models:/photos-student/1")
    table = pd.DataFrame({"image": [file.read_bytes(), base64.b64encode(file.read_bytes()).decode()]})
    answer = served.predict(table)
    assert list(answer["class"]) == [ours["class"]] * 2
    assert answer["probability"].tolist() == pytest.approx([ours["probability"]] * 2, abs=1e-5)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = kd_mlflow.load_model(folder).eval()(pixels)
        torch.testing.assert_close(mlflow.pytorch.load_model("models:/photos-student/1")(pixels), expected)


def test_the_student_is_exported_and_the_exports_agree(distilled, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    for name in ("student.onnx", "student.pt2"):
        out = json.loads(distilled.run("export", "photos-student/1", str(tmp_path / name), "--json"))
        assert out["max_difference"] < 1e-4
        assert (tmp_path / name).stat().st_size == out["bytes"] > 1000


def test_a_pulled_folder_is_a_teacher_and_evaluates(distilled, photos, tmp_path):
    folder = tmp_path / "teacher"
    distilled.run("pull", "photos-teacher/1", str(folder))
    result = json.loads(distilled.run(
        "distill", "--data", str(photos), *QUICK, "--epochs", "1", "--teacher", str(folder),
        "--no-control", "--json"))  # fmt: skip
    assert result["control"] is None
    assert result["teacher"]["architecture"] == "shufflenet_v2_x1_0"
    measured = json.loads(distilled.run(
        "evaluate", "--data", str(photos), "--model", "models:/photos-teacher/1",
        "--json"))  # fmt: skip
    assert measured["metrics"]["accuracy"] == result["teacher"]["test"]["accuracy"]


def test_a_weights_file_is_a_teacher(distilled, photos, tmp_path):
    folder = tmp_path / "teacher"
    distilled.run("pull", "photos-teacher/1", str(folder))
    result = json.loads(distilled.run(
        "distill", "--data", str(photos), *QUICK, "--teacher-arch", "shufflenet_v2_x1_0", "--epochs", "1",
        "--no-control", "--teacher", str(folder / "model.safetensors"), "--json"))  # fmt: skip
    assert result["teacher"]["val"]["accuracy"] > 0


def test_a_teacher_of_other_classes_is_refused_and_the_run_says_why(distilled, client, tmp_path):
    other = make_photos(tmp_path / "other")
    (other / "amber").rename(other / "umber")
    err = distilled.run(
        "distill", "--data", str(other), *QUICK, "--teacher", "models:/photos-teacher@champion", code=2)  # fmt: skip
    assert "amber" in err
    failed = next(run for run in client.search_runs([client.get_experiment_by_name("kd-mlflow").experiment_id])
                  if run.info.status == "FAILED")  # fmt: skip
    assert "amber" in failed.data.tags["kd.reason"]


def test_a_weak_teacher_is_named_and_refused_when_a_strong_one_is_required(distilled, photos, client):
    # A teacher that learns next to nothing against a control that learns.
    given = ["--data", str(photos), "--image-size", "32", "--epochs", "10", "--batch-size", "8", "--student", TINY,
             "--teacher-arch", TINY, "--learning-rate", "0.03", "--teacher-learning-rate", "1e-12",
             "--no-register-model"]  # fmt: skip
    result = json.loads(distilled.run("distill", *given, "--json"))
    assert result["teacher"]["val"]["accuracy"] < result["control"]["val"]["accuracy"]
    assert client.get_run(result["run_id"]).data.tags["kd.weak_teacher"] == "true"
    page = Path(client.download_artifacts(result["run_id"], "report.html")).read_text()
    assert "The teacher is weak" in page
    assert "labels-only control on validation" in page
    assert "exact McNemar test" in page
    assert "weak" in distilled.run("distill", *given, "--require-strong-teacher", code=2)


@pytest.mark.fault("the loss becomes infinite", "exit code 3; the images of that batch are in the run")
def test_a_loss_that_is_not_finite_stops_with_code_three_and_names_the_images(distilled, photos, client):
    err = distilled.run(
        "student", "--data", str(photos), "--image-size", "32", "--batch-size", "8", "--epochs", "2", "--student", TINY,
        "--optimizer", "sgd", "--learning-rate", "1e38", "--class-weights", "balanced", "--experiment", "guarded",
        code=3)  # fmt: skip
    assert "--learning-rate" in err
    (run,) = client.search_runs([client.get_experiment_by_name("guarded").experiment_id])
    assert run.info.status == "FAILED"
    stopped = json.loads(Path(client.download_artifacts(run.info.run_id, "non_finite_loss.json")).read_text())
    assert len(stopped["samples"]) == 8
    assert all(path.endswith(".jpg") for path in stopped["paths"])


@pytest.mark.fault("class names that a spreadsheet would calculate", "they are text in every CSV")
def test_tables_hold_no_formula(client, runs):
    run_id = runs["student"]["run_id"]
    for name in ("per_class", "misclassified"):
        listed = {item.path for item in client.list_artifacts(run_id, "tables")}
        if f"tables/{name}.csv" in listed:
            rows = list(
                csv.reader(io.StringIO(Path(client.download_artifacts(run_id, f"tables/{name}.csv")).read_text()))
            )
            assert len(rows) > 1
            assert not [cell for row in rows for cell in row if cell.startswith(("=", "@"))]


@pytest.mark.fault(
    "`$(touch f)`, backticks and quotes in every parameter of the project",
    "they are data; nothing is executed",
)
def test_parameters_of_the_project_are_data_and_never_run(place, tmp_path):
    trap = tmp_path / "touched"
    for value in (f"$(touch {trap})", f"`touch {trap}`", f"'; touch {trap}; '", f'"; touch {trap}; "'):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("mlflow")), "run", str(ROOT), "-e", "prepare", "--env-manager", "local",
             "-P", f"data={value}"],
            cwd=place.path, env=place.environment, capture_output=True, text=True)  # fmt: skip
        assert done.returncode != 0
        assert not trap.exists()


def test_python_has_the_same_commands(distilled, photos, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(distilled.home))
    from kd_mlflow.config import StudentConfig

    config = resolve(StudentConfig, {
        "data": str(photos), "student": TINY, "image_size": 32, "epochs": 1, "batch_size": 8,
        "tracking_uri": distilled.uri})  # fmt: skip
    result = kd_mlflow.train_student(config)
    assert result.network["architecture"] == TINY
    assert 0 <= result.network["test"]["accuracy"] <= 1
