"""What docker/ promises, read from its files: there is no container engine here that could start them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.server.stack import COMPOSE, DOCKER, ROOT, SETTINGS, make_secrets

DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile*"))
SERVICES = COMPOSE["services"]
ENDS_BY_ITSELF = {"account", "search-worker", "kd-mlflow"}
KNOWN_PASSWORDS = re.compile(r"password1234|rustfsadmin|minioadmin|changeme|:postgres@|admin:admin", re.IGNORECASE)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_file_fits_the_specification(name):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DOCKER / name)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: str(file.relative_to(DOCKER)))
def test_dockerfile_passes_the_linter(file):
    done = subprocess.run([shutil.which("hadolint"), "--no-color", file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: str(file.relative_to(DOCKER)))
def test_images_are_pinned_and_run_as_an_ordinary_user(file):
    lines = file.read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]


def test_training_images_are_the_command_itself():
    for file in DOCKER.glob("train/Dockerfile.*"):
        assert 'ENTRYPOINT ["kd-mlflow"]' in file.read_text().splitlines()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_is_pinned_restricted_and_not_root(name):
    service = SERVICES[name]
    if name in ("search-worker", "kd-mlflow"):
        assert service["image"] == "${KD_IMAGE}"
        assert not SETTINGS["KD_IMAGE"].endswith(":latest")
    else:
        assert re.search(r":\d+\.\d+", service["image"])
    assert "build" in service or service["image"].startswith("kd-mlflow") or int(service["user"].split(":")[0]) > 0
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert name in ENDS_BY_ITSELF or service["healthcheck"]["test"]


def test_outside_there_are_only_the_proxy_and_on_this_machine_postgres():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "proxy": ["${KD_HTTPS_PORT}:8443"],
        "postgres": ["${KD_POSTGRES_ADDRESS}:5432:5432"],
    }
    assert SETTINGS["KD_POSTGRES_ADDRESS"] == "127.0.0.1"
    sharing = {name for name, service in SERVICES.items() if "store" in service["networks"]}
    assert sharing == {"rustfs", "mlflow"}
    assert COMPOSE["networks"]["store"] == COMPOSE["networks"]["inside"] == {"internal": True}


def test_server_runs_the_version_of_mlflow_that_its_tag_names():
    version = SERVICES["mlflow"]["image"].partition(":")[2]
    assert SERVICES["account"]["image"] == SERVICES["mlflow"]["image"]
    assert f"mlflow=={version}" in (DOCKER / "constraints.txt").read_text().splitlines()


def test_gpu_workers_have_the_services_of_the_others():
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert set(gpu) == {name for name, service in SERVICES.items() if "profiles" in service}


@pytest.mark.fault(
    "a default password", "there is none in any file; every secret comes from a file that secrets.sh makes"
)
def test_no_file_holds_a_password():
    for file in [
        file for file in DOCKER.rglob("*") if file.is_file() and "secrets" not in file.relative_to(DOCKER).parts
    ]:
        assert not KNOWN_PASSWORDS.search(file.read_text()), file
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|SECRET|_KEY", name):
                assert value.startswith("/run/secrets/"), name
    assert not [name for name in SETTINGS if re.search(r"PASSWORD|SECRET|KEY", name)]


def test_secrets_are_those_that_compose_names(tmp_path):
    folder = make_secrets(tmp_path / "secrets")
    named = {secret["file"].removeprefix("./secrets/") for secret in COMPOSE["secrets"].values()}
    assert {file.name for file in folder.iterdir()} == named
    for service in SERVICES.values():
        given = [*service["environment"].values(), *service.get("command", [])]
        used = {value.removeprefix("/run/secrets/") for value in given if "/run/secrets/" in value}
        assert used == set(service["secrets"])


def test_secrets_are_long_different_and_kept_from_others(tmp_path):
    folders = [make_secrets(tmp_path / name) for name in ("one", "two")]
    random = [file for folder in folders for file in folder.iterdir() if not file.name.startswith(("tls", "s3_access"))]
    values = [file.read_text() for file in random]
    assert len(set(values)) == len(values) == 14
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in values)
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o444}


@pytest.mark.fault("secrets.sh is run again", "it refuses, and what is in use stays as it is")
def test_secrets_are_never_written_over(tmp_path):
    folder = make_secrets(tmp_path / "secrets")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    again = subprocess.run([DOCKER / "secrets.sh", "localhost", folder], capture_output=True, text=True)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_secrets_are_not_made_for_what_is_no_host_name(tmp_path):
    done = subprocess.run([DOCKER / "secrets.sh", "a b$(touch x)", tmp_path / "s"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is no host name" in done.stderr
    assert list(tmp_path.iterdir()) == []


def given(tmp_path, content: str | None) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    show = [sys.executable, "-c", "import os; print(os.environ['WORD'], 'FILE__WORD' in os.environ)"]
    return subprocess.run(
        [DOCKER / "from-files.sh", *show],
        env={"PATH": "/usr/bin:/bin", "FILE__WORD": str(file)},
        capture_output=True,
        text=True,
    )


def test_a_secret_arrives_as_it_is(tmp_path):
    done = given(tmp_path, """a'b"c $(exit 3) `exit 4` %s\\n""")
    assert done.stdout == """a'b"c $(exit 3) `exit 4` %s\\n False\n"""


@pytest.mark.parametrize("script", sorted(DOCKER.rglob("*.sh")), ids=lambda file: file.name)
def test_scripts_can_be_executed(script):
    subprocess.run(["sh", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.fault("the file of a secret is missing or empty", "the service does not start, and says which file")
@pytest.mark.parametrize("content", [None, ""])
def test_a_secret_that_is_not_there_is_named(tmp_path, content):
    done = given(tmp_path, content)
    assert done.returncode == 1
    assert str(tmp_path / "secret") in done.stderr
    assert "run docker/secrets.sh" in done.stderr


def test_builds_leave_secrets_out():
    for folder in (ROOT, DOCKER):
        lines = (folder / ".dockerignore").read_text().splitlines()
        assert lines[1] == "*"
        assert not [line for line in lines if line.startswith("!") and "secret" in line]
