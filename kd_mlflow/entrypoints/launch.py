"""Launch files for the workers of a search: an array job of Slurm, a Job of Kubernetes."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from kd_mlflow.data.catalog import CATALOG
from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import redact

STORAGE_VARIABLE = "KD_MLFLOW_STORAGE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
IMAGE = "kd-mlflow:latest"
SECRET = "kd-mlflow"  # nosec B105  # the name of a Secret, not its content
USER = 1000
NAME_LENGTH = 50
# A worker that is told to end writes a checkpoint and gives its trial back; a slow disk may need a while.
GRACE_SECONDS = 120
RETRIES_PER_WORKER = 10


@dataclass(frozen=True)
class Launch:
    """What the workers of a study are started with; the options of `search-worker`, and how many there shall be.

    Attributes
    ----------
    checkpoints:
        A folder that all workers share, or an fsspec URL.
    data:
        A built-in name, or the absolute path under which the workers see the images; empty: as for `search`.
    """

    study: str
    storage: str
    tracking_uri: str
    checkpoints: str
    data: str
    workers: int


def render_slurm(launch: Launch) -> str:
    """A script for `sbatch`, one task of an array a worker.

    Raises
    ------
    InputError
        Another machine could not reach what the launch names.
    """
    _check(launch)
    arguments = " \\\n    ".join(f"{option} {shlex.quote(value)}" for option, value in _options(launch).items())
    guards = "".join(_SLURM_GUARD.format(variable=name) for name in _secrets(launch))
    return _SLURM.format(name=_dns_name(launch.study), last=launch.workers - 1, guards=guards, arguments=arguments)


def render_kubernetes(launch: Launch) -> str:
    """A batch/v1 Job, one pod a worker.

    Raises
    ------
    InputError
        A pod could not reach what the launch names.
    """
    _check(launch)
    if launch.tracking_uri.startswith(("/", "file:")):
        raise _unreachable("--tracking-uri", launch.tracking_uri, "the URL of an MLflow server: http://HOST:PORT")
    name, secrets = _dns_name(launch.study), _secrets(launch)
    needed = f"; it must hold {' and '.join(secrets)}" if secrets else ""
    head = _KUBERNETES_HEAD.format(image=IMAGE, secret=SECRET, needed=needed)
    return head + yaml.safe_dump(_job(launch, name, secrets), sort_keys=False)


def _job(launch: Launch, name: str, secrets: list[str]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "kd-mlflow", "app.kubernetes.io/instance": name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "parallelism": launch.workers,
            "backoffLimit": RETRIES_PER_WORKER * launch.workers,
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(launch, secrets)},
        },
    }


def _pod(launch: Launch, secrets: list[str]) -> dict[str, Any]:
    volumes, mounts = _volumes(launch)
    # MLflow asks for the user's name, which a bare user id does not have.
    plain = {"KD_MLFLOW_HOME": "/scratch", "HOME": "/scratch", "USER": "kd-mlflow"}
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in plain.items()]
    environment += [{"name": key, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}} for key in secrets]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "worker",
                "image": IMAGE,
                "command": ["kd-mlflow", "search-worker"],
                "args": [_literal(word) for pair in _options(launch).items() for word in pair],
                "env": environment,
                "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
                "resources": {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"nvidia.com/gpu": 1}},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _volumes(launch: Launch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes, and where the container sees them: under the paths that the launch names."""
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": "/scratch"}]
    data = PurePosixPath(launch.data)
    if data.is_absolute():
        folder = data.parent if data.suffix == ".tar" else data
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": "kd-mlflow-data", "readOnly": True}})
        mounts.append({"name": "data", "mountPath": str(folder), "readOnly": True})
    checkpoints = launch.checkpoints.removeprefix("file://")
    if checkpoints.startswith("/"):
        volumes.append({"name": "checkpoints", "persistentVolumeClaim": {"claimName": "kd-mlflow-checkpoints"}})
        mounts.append({"name": "checkpoints", "mountPath": checkpoints})
    return volumes, mounts


def _options(launch: Launch) -> dict[str, str]:
    """The options of `search-worker`, without URLs that hold a password."""
    options = {
        "--study": launch.study,
        "--storage": launch.storage,
        "--tracking-uri": launch.tracking_uri,
        "--checkpoints": launch.checkpoints,
        "--data": launch.data,
    }
    return {option: value for option, value in options.items() if value and not _holds_secret(value)}


def _secrets(launch: Launch) -> list[str]:
    """The environment variables that carry a URL which must not stand in a file."""
    urls = {STORAGE_VARIABLE: launch.storage, TRACKING_VARIABLE: launch.tracking_uri}
    return [variable for variable, url in urls.items() if _holds_secret(url)]


def _holds_secret(url: str) -> bool:
    """Whether a URL holds a password; the mere user of a database is none, but may be a token elsewhere."""
    if re.match(r"(postgres|mysql|mssql)", url):
        url = re.sub(r"://[^\s:/?@]+@", "://", url, count=1)
    return redact(url) != url


def _literal(word: str) -> str:
    """An argument that Kubernetes does not expand: it takes ``$(NAME)`` for a variable, ``$$`` for a dollar."""
    return word.replace("$", "$$")


def _dns_name(study: str) -> str:
    """A DNS label (RFC 1123) for any study; other studies get other names."""
    plain = re.sub(r"[^a-z0-9]+", "-", study.lower())[:NAME_LENGTH].strip("-")
    if plain == study:
        return f"kd-{plain}"
    return "-".join(filter(None, ["kd", plain, hashlib.sha256(study.encode()).hexdigest()[:8]]))


def _check(launch: Launch) -> None:
    """Whether other machines reach all that the launch names."""
    options = {"--study": launch.study, "--checkpoints": launch.checkpoints, "--data": launch.data}
    for option, value in options.items():
        if not value.isprintable():
            raise InputError(f"{option} {value!r} holds a line break or another control character; give it without.")
    if not launch.study:
        raise InputError("--study is empty; give the name that `kd-mlflow search` printed.")
    if launch.workers < 1:
        raise InputError(f"--workers {launch.workers} starts none; give 1 or more.")
    if not launch.storage.startswith("postgresql") or _local(launch.storage):
        advice = "postgresql://USER@HOST/DATABASE with a host that the workers reach"
        raise _unreachable("--storage", launch.storage, advice)
    _check_tracking(launch.tracking_uri)
    _check_checkpoints(launch.checkpoints)
    if launch.data and launch.data not in CATALOG and not PurePosixPath(launch.data).is_absolute():
        raise _unreachable("--data", launch.data, "the absolute path under which the workers see the images")


def _check_tracking(uri: str) -> None:
    path = uri.removeprefix("file://").removeprefix("file:")
    server = "://" in uri and not uri.startswith(("sqlite", "file:")) and not _local(uri)
    if not (server or path.startswith("/") or re.fullmatch(r"databricks(://\S+)?", uri)):
        raise _unreachable("--tracking-uri", uri, "the URL of an MLflow server: http://HOST:PORT")


def _check_checkpoints(place: str) -> None:
    advice = "a folder that all workers share (an absolute path), or an fsspec URL such as s3://BUCKET/FOLDER"
    if not place:
        raise InputError(f"--checkpoints is empty, so no worker could go on with another's trial; give {advice}.")
    if _holds_secret(place):
        raise InputError(
            f"--checkpoints {redact(place)} holds credentials; leave them out and give them in the variables that "
            "the storage's own client reads (AWS_ACCESS_KEY_ID, …)."
        )
    path = place.removeprefix("file://")
    if not path.startswith("/") and ("://" not in path or _local(path)):
        raise _unreachable("--checkpoints", place, advice)


def _local(url: str) -> bool:
    """Whether a URL leads back to the machine that reads it: no host, a socket, or a loopback address."""
    try:
        parts = urlsplit(redact(url))
        host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
    except ValueError:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".").removesuffix(".localdomain")
        return name in ("", "localhost") or name.startswith(("/", "127.")) or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _unreachable(option: str, url: str, advice: str) -> InputError:
    return InputError(f"{option} {redact(url) or '(empty)'} cannot be reached from another machine; give {advice}.")


_SLURM = """\
#!/bin/bash
# Workers of a search by kd-mlflow. Start `kd-mlflow search` first, then: sbatch THIS_FILE
# A task does trials until the study has all of them. One that ends before, say by its time limit, gives its
# trial back; submit the file again and the study goes on.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
# Adapt: processor cores a worker.
#SBATCH --cpus-per-task=4
# Adapt: the longest time that the partition allows.
#SBATCH --time=24:00:00
# Adapt: take one # away and name a partition with GPUs.
##SBATCH --partition=gpu
# A task whose node failed or was taken away starts again.
#SBATCH --requeue
# A minute before the time is up: to the worker that srun started, and not (as with B:) to this shell alone.
#SBATCH --signal=TERM@60
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append

set -euo pipefail

# Adapt: the environment that kd-mlflow is installed in.
# source /path/to/environment/bin/activate

{guards}# Since Slurm 22.05 srun takes the number of cores from here alone.
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-1}}"
srun kd-mlflow search-worker \\
    {arguments}
"""

_SLURM_GUARD = """\
# This URL holds a password and stands in no file: export {variable}=… before sbatch, which passes it on.
: "${{{variable}:?set it to the URL before sbatch}}"
"""

_KUBERNETES_HEAD = """\
# Workers of a search by kd-mlflow. Start `kd-mlflow search` first, then: kubectl create -f THIS_FILE
# Adapt: the image {image}, the two requests, and the claims kd-mlflow-data and kd-mlflow-checkpoints if they
# are named here. A claim is seen under the very path of --data or --checkpoints; pods on several nodes need
# access modes ReadOnlyMany and ReadWriteMany.
# Credentials come from the Secret {secret}{needed}. All its keys become
# variables, so MLFLOW_TRACKING_PASSWORD or AWS_SECRET_ACCESS_KEY may stand there too:
#     kubectl create secret generic {secret} --from-env-file=FILE
# completions is left out on purpose: the pods share the study as a work queue, and a worker exits with 0 only
# when its trials are done or the study was stopped. From then on no pod is started, and the rest end by themselves.
# restartPolicy is Never: a failed worker gets a new pod, on another node if need be, and its log stays. Only so
# can podFailurePolicy leave pods that were evicted or preempted out of the count towards backoffLimit.
"""
