"""The files of docker/ before anything is started: valid, pinned, without a password, nobody is root."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.server.team import DOCKER

COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
FILES = sorted(path for path in DOCKER.rglob("*") if path.is_file() and "secrets" not in path.parts[:-1])


def test_the_compose_file_is_valid_by_the_specifications_schema():
    checked = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*checked, DOCKER / "compose.yaml"], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu", "Dockerfile.server"])
def test_a_dockerfile_has_no_finding_and_ends_as_an_ordinary_user(name):
    done = subprocess.run([Path(sys.executable).parent / "hadolint", DOCKER / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    lines = (DOCKER / name).read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001"
    for line in (line for line in lines if line.startswith("FROM")):
        assert re.search(r":\d+\.\d+\.\d+", line), line


def test_every_image_is_pinned_and_every_service_gives_up_what_it_does_not_need():
    for name, service in COMPOSE["services"].items():
        assert re.search(r":\d+\.\d+", service.get("image", ":0.0")), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
    assert list(COMPOSE["services"]["proxy"]["ports"]) == ["${PORT:-443}:8443"]
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["proxy"]
    assert {volume.partition(":")[0] for volume in COMPOSE["volumes"]} == {"databases", "objects", "work"}


def draw_secrets(folder: Path, host: str) -> dict[str, str]:
    environment = {"SECRETS": str(folder), "PATH": "/bin:/usr/bin"}
    subprocess.run([DOCKER / "secrets.sh", host], check=True, env=environment, capture_output=True)
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.fault("a default password", "there is none: every password is a file that a script draws")
def test_no_file_holds_a_password_and_all_come_from_files(tmp_path):
    for service in COMPOSE["services"].values():
        for name, value in (service.get("environment") or {}).items():
            assert not re.search("PASSWORD|SECRET_KEY|ACCESS_KEY", name) or str(value).startswith("/run/secrets/"), name
    assert all(one["file"].startswith("./secrets/") for one in COMPOSE["secrets"].values())
    used = {name for service in COMPOSE["services"].values() for name in service.get("secrets", [])}
    assert used == COMPOSE["secrets"].keys()
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run(
            [DOCKER / "secrets.sh", "kd.example"], check=True, env={"SECRETS": str(folder), "PATH": "/bin:/usr/bin"}
        )
        drawn = {file.name: file.read_text() for file in folder.iterdir()}
    assert drawn.keys() == used
    passwords = [value for name, value in drawn.items() if not name.startswith("tls")]
    assert len(set(passwords)) == len(passwords)
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in passwords)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    subprocess.run(
        [DOCKER / "secrets.sh", "other.example"], check=True, env={"SECRETS": str(folder), "PATH": "/bin:/usr/bin"}
    )
    assert {file.name: file.read_text() for file in folder.iterdir()} == drawn


@pytest.mark.fault("a secret is missing", "the server does not start, and says which")
@pytest.mark.parametrize("script", ["mlflow/serve.sh", "postgres/init.sh"])
def test_without_its_secrets_nothing_starts(script, tmp_path):
    done = subprocess.run(
        [DOCKER / script], env={"SECRETS": str(tmp_path), "PATH": "/bin:/usr/bin", "ALLOWED_HOSTS": "x"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "The secret mlflow_db_password is missing" in done.stderr


def test_scripts_can_be_executed():
    for file in FILES:
        if file.suffix == ".sh":
            assert file.stat().st_mode & stat.S_IXUSR, file
            subprocess.run(["sh", "-n", file], check=True)
