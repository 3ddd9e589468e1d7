"""Launch files: what arrives at the workers, what stands in no file, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import kubernetes_validate
import pytest
import yaml

from kd_mlflow.entrypoints.launch import Launch, render_kubernetes, render_slurm
from kd_mlflow.errors import InputError

PLAIN = Launch(
    study="photos",
    storage="postgresql://kd@database.lan/optuna",
    tracking_uri="http://mlflow.lan:5000",
    checkpoints="/shared/checkpoints",
    data="/shared/photos",
    workers=4,
)
NASTY = [
    "cats & dogs",
    "it's $(touch stolen) `touch stolen` ${HOME} $HOME",
    'a "quoted" \\ name; touch stolen',
    "-rf *",
    "Größe ≥ 32 🐱",
    "$$(KD_MLFLOW_HOME) $(KD_MLFLOW_HOME) $",
    "yes",
    "# no comment: [a, b]",
    "x" * 300,
]
# Those of `man sbatch` (Slurm 22.05 to 25.05) that a job of this kind may use.
SBATCH_OPTIONS = {
    *("account", "array", "chdir", "constraint", "cpus-per-gpu", "cpus-per-task", "error", "exclude", "export"),
    *("exclusive", "gpu-bind", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "hold", "input", "job-name"),
    *("kill-on-invalid-dep", "licenses", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nice"),
    *("no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output"),
    *("partition", "qos", "requeue", "reservation", "signal", "time", "time-min", "tmp", "wait", "wrap"),
}


def job_of(launch: Launch) -> dict:
    return yaml.safe_load(render_kubernetes(launch))


def container_of(launch: Launch) -> dict:
    return job_of(launch)["spec"]["template"]["spec"]["containers"][0]


def expanded(word: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of an argument: `$$` is a dollar, `$(NAME)` a variable if there is one."""

    def put(found: re.Match) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", put, word)


def options_of(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def sbatch(tmp_path):
    """Runs a script as sbatch would, with an `srun` and a `kd-mlflow` that say what they were called with."""
    tools = tmp_path / "tools"
    tools.mkdir()
    told = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('told.json', 'w'))"
    (tools / "srun").write_text('#!/bin/bash\n"$@"\n')
    (tools / "kd-mlflow").write_text(f"#!{sys.executable}\n{told}\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)

    def run(script: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "job.sh").write_text(script, encoding="utf-8")
        plain = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_CPUS_PER_TASK": "4"}
        done = subprocess.run(
            ["bash", "job.sh"], cwd=tmp_path, env=plain | environment, capture_output=True, text=True, check=False
        )
        file = tmp_path / "told.json"
        return done, json.loads(file.read_text())[0] if file.exists() else []

    run.folder = tmp_path
    return run


def test_slurm_script_is_an_array_with_one_gpu_a_worker():
    script = render_slurm(PLAIN)
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    head, body = script.split("set -euo pipefail")
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE)
    assert len(options) == script.count("\n#SBATCH")
    assert {name for name, _ in options} <= SBATCH_OPTIONS
    assert (
        dict(options).items()
        >= {
            "job-name": "kd-photos",
            "array": "0-3",
            "ntasks": "1",
            "gpus-per-task": "1",
            "requeue": "",
            "signal": "TERM@60",
            "open-mode": "append",
        }.items()
    )
    # sbatch reads no option after the first line that is a command.
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert "\nsrun kd-mlflow search-worker" in body
    assert "--array=0-0\n" in render_slurm(replace(PLAIN, workers=1))


@pytest.mark.fault(
    "names with quotes, blanks and `$(…)` in a Slurm script",
    "they arrive as they are; nothing is executed",
)
@pytest.mark.parametrize("name", NASTY)
def test_names_arrive_unharmed_through_slurm(sbatch, name):
    launch = replace(PLAIN, study=name, data=f"/shared/{name}", checkpoints=f"/shared/{name}")
    done, told = sbatch(render_slurm(launch))
    assert (done.returncode, done.stderr) == (0, "")
    assert told[0] == "search-worker"
    assert options_of(told[1:]) == {
        "--study": name,
        "--storage": PLAIN.storage,
        "--tracking-uri": PLAIN.tracking_uri,
        "--checkpoints": f"/shared/{name}",
        "--data": f"/shared/{name}",
    }
    assert not (sbatch.folder / "stolen").exists()


@pytest.mark.parametrize("name", NASTY)
def test_names_arrive_unharmed_through_kubernetes(name):
    container = container_of(replace(PLAIN, study=name, data=f"/shared/{name}"))
    variables = {one["name"]: one.get("value", "") for one in container["env"]}
    told = options_of([expanded(word, variables) for word in container["args"]])
    assert (told["--study"], told["--data"]) == (name, f"/shared/{name}")
    assert container["volumeMounts"][1]["mountPath"] == f"/shared/{name}"


def test_jobs_have_valid_names_that_differ():
    studies = [*NASTY, "photos", "Photos", "photos!", "---", "a" * 50, "a" * 51, "a" * 52, "1", "a-" * 40]
    jobs = [job_of(replace(PLAIN, study=study)) for study in studies]
    names = [job["metadata"]["name"] for job in jobs]
    assert len(set(names)) == len(studies)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
    assert names[studies.index("photos")] == "kd-photos"


@pytest.mark.parametrize(
    "launch",
    [
        PLAIN,
        replace(PLAIN, storage="postgresql://kd:secret@database.lan/optuna", study=NASTY[1]),
        replace(PLAIN, data="cifar10", checkpoints="s3://bucket/checkpoints"),
    ],
)
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_job_meets_the_schema(launch, version):
    assert kubernetes_validate.validate(job_of(launch), version, strict=True) == version


def test_kubernetes_job_is_a_work_queue_of_harmless_pods():
    spec = job_of(PLAIN)["spec"]
    assert spec["parallelism"] == 4
    assert "completions" not in spec
    assert spec["backoffLimit"] >= 4
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    container = pod["containers"][0]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert container["command"] == ["kd-mlflow", "search-worker"]
    claims = {one["name"]: one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"][1:]}
    assert claims == {"data": "kd-mlflow-data", "checkpoints": "kd-mlflow-checkpoints"}
    assert {one["mountPath"] for one in container["volumeMounts"]} >= {PLAIN.data, PLAIN.checkpoints}


def test_a_volume_is_claimed_only_for_a_path():
    job = job_of(replace(PLAIN, data="cifar10", checkpoints="s3://bucket/checkpoints"))
    assert [one["name"] for one in job["spec"]["template"]["spec"]["volumes"]] == ["scratch"]
    mounts = container_of(replace(PLAIN, data="/shared/photos.tar", checkpoints="file:///shared/ck"))["volumeMounts"]
    assert [one["mountPath"] for one in mounts] == ["/scratch", "/shared", "/shared/ck"]


@pytest.mark.fault("a password in the storage's URL", "it stands in no launch file")
@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://kd:hunter2@database.lan/optuna",
        "postgresql+psycopg://kd:hun/ter2@hunter2@database.lan:5432/optuna",
        "postgresql://kd@database.lan/optuna?password=hunter2",
    ],
)
def test_a_password_stands_in_no_file(sbatch, storage):
    tracking = "https://someone:hunter2@mlflow.lan"
    launch = replace(PLAIN, storage=storage, tracking_uri=tracking)
    script, job = render_slurm(launch), render_kubernetes(launch)
    assert "hunter2" not in script + job
    assert "ter2" not in script + job
    done, told = sbatch(script)
    assert done.returncode != 0
    assert "KD_MLFLOW_STORAGE: set it to the URL" in done.stderr
    assert told == []
    done, told = sbatch(script, KD_MLFLOW_STORAGE=storage, MLFLOW_TRACKING_URI=tracking)
    assert done.returncode == 0
    assert told[1::2] == ["--study", "--checkpoints", "--data"]
    container = container_of(launch)
    assert container["args"][::2] == ["--study", "--checkpoints", "--data"]
    references = {one["name"]: one["valueFrom"] for one in container["env"] if "valueFrom" in one}
    assert references == {
        name: {"secretKeyRef": {"name": "kd-mlflow", "key": name}}
        for name in ("KD_MLFLOW_STORAGE", "MLFLOW_TRACKING_URI")
    }


def test_a_token_in_place_of_a_user_is_a_password():
    launch = replace(PLAIN, tracking_uri="https://abcdef@mlflow.lan")
    assert "abcdef" not in render_slurm(launch) + render_kubernetes(launch)


@pytest.mark.parametrize("render", [render_slurm, render_kubernetes])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"storage": ""}, ["--storage (empty)", "postgresql://"]),
        ({"storage": "sqlite:///optuna.db"}, ["--storage sqlite:///optuna.db", "postgresql://"]),
        ({"storage": "postgresql://kd:hunter2@localhost/optuna"}, ["--storage postgresql://***@localhost/optuna"]),
        ({"storage": "postgresql://kd@127.0.0.1:5432/optuna"}, ["--storage"]),
        ({"storage": "postgresql://kd@[::1]/optuna"}, ["--storage"]),
        ({"storage": "postgresql:///optuna"}, ["--storage"]),
        ({"storage": "postgresql:///optuna?host=/var/run/postgresql"}, ["--storage"]),
        ({"tracking_uri": ""}, ["--tracking-uri (empty)", "http://HOST:PORT"]),
        ({"tracking_uri": "sqlite:////shared/mlflow.db"}, ["--tracking-uri sqlite:////shared/mlflow.db"]),
        ({"tracking_uri": "mlruns"}, ["--tracking-uri mlruns"]),
        ({"tracking_uri": "file:mlruns"}, ["--tracking-uri file:mlruns"]),
        ({"tracking_uri": "http://LocalHost:5000"}, ["--tracking-uri"]),
        ({"tracking_uri": "http://127.1:5000"}, ["--tracking-uri"]),
        ({"tracking_uri": "http://0.0.0.0:5000"}, ["--tracking-uri"]),
        ({"checkpoints": ""}, ["--checkpoints is empty", "s3://"]),
        ({"checkpoints": "checkpoints"}, ["--checkpoints checkpoints", "absolute"]),
        ({"checkpoints": "http://localhost:9000/checkpoints"}, ["--checkpoints"]),
        ({"checkpoints": "s3://key:hunter2@bucket/checkpoints"}, ["--checkpoints s3://***@bucket", "AWS_"]),
        ({"data": "photos"}, ["--data photos", "absolute path"]),
        ({"study": ""}, ["--study is empty"]),
        ({"study": "two\nlines"}, ["--study 'two\\nlines'"]),
        ({"workers": 0}, ["--workers 0"]),
    ],
)
def test_what_no_other_machine_reaches_is_refused(render, change, words):
    with pytest.raises(InputError) as refused:
        render(replace(PLAIN, **change))
    sentence = str(refused.value)
    assert all(word in sentence for word in words)
    assert "hunter2" not in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "change",
    [
        {"storage": "postgresql:///optuna?host=database.lan"},
        {"tracking_uri": "databricks"},
        {"tracking_uri": "databricks://profile"},
        {"tracking_uri": "postgresql://kd@database.lan/mlflow"},
        {"data": ""},
    ],
)
def test_what_other_machines_reach_is_taken(change):
    launch = replace(PLAIN, **change)
    assert render_slurm(launch)
    assert kubernetes_validate.validate(job_of(launch), "1.37", strict=True)


def test_a_store_of_files_serves_a_shared_disk_but_no_pod():
    launch = replace(PLAIN, tracking_uri="file:///shared/mlruns")
    assert "--tracking-uri file:///shared/mlruns" in render_slurm(launch)
    with pytest.raises(InputError, match="--tracking-uri"):
        render_kubernetes(launch)
