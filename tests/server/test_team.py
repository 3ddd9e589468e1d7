"""The team's server in use: accounts, least privilege, and a training, a search and a registry that go through it."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

import psycopg
import pytest

from tests.conftest import QUICK
from tests.server.team import DOCKER, HOST, Team


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    started = Team(tmp_path_factory.mktemp("team"))
    yield started
    started.close()


def call(url: str, user: str = "", body: dict | None = None, host: str = "", context=None) -> int:
    """The status that a request is answered with."""
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    if host:
        headers["Host"] = host
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


READS = [
    "/api/2.0/mlflow/experiments/search?max_results=1",
    "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
    "/get-artifact?path=x&run_uuid=x",
    "/api/2.0/mlflow-artifacts/artifacts",
    "/api/2.0/mlflow/registered-models/search",
    "/api/2.0/mlflow/users/list",
    "/ajax-api/3.0/mlflow/traces/search",
    "/",
]
WRITES = [
    ("/api/2.0/mlflow/experiments/create", {"name": "stranger"}),
    ("/api/2.0/mlflow/runs/create", {"experiment_id": "0"}),
    ("/api/2.0/mlflow/registered-models/create", {"name": "stranger"}),
    ("/api/2.0/mlflow/users/create", {"username": "stranger", "password": "stranger-password"}),
    ("/graphql", {"query": "{ __typename }"}),
]


@pytest.mark.fault("a call without an account, or with a wrong password", "nothing is read or written")
@pytest.mark.parametrize("user", ["", "worker:wrong", "admin:password1234"])
def test_no_anonymous_call_reads_or_writes(team, user):
    assert {call(team.url + path, user) for path in READS} <= {401, 403, 404, 405}
    assert {path: call(team.url + path, user, body) for path, body in WRITES} == {path: 401 for path, _ in WRITES}
    admin = f"admin:{team.secret('mlflow_admin_password')}"
    assert call(f"{team.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=stranger", admin) == 404


@pytest.mark.fault("a foreign Host header", "status 403")
def test_a_foreign_host_is_refused(team):
    worker = f"worker:{team.secret('worker_password')}"
    assert call(team.url + READS[0], worker, host="evil.example") == 403
    assert call(team.url + READS[0], worker) == 200
    # A worker makes no accounts.
    assert call(f"{team.url}/api/2.0/mlflow/users/create", worker, {"username": "x", "password": "x" * 12}) == 403


@pytest.mark.fault("a role reaches for another's database", "Postgres refuses")
def test_a_role_reaches_its_own_database_only(team):
    for role, own in (("mlflow", {"mlflow", "mlflow_auth"}), ("optuna", {"optuna"})):
        for database in ("mlflow", "mlflow_auth", "optuna", "postgres"):
            at = {"host": HOST, "port": team.postgres.port, "user": role, "dbname": database}
            at["password"] = team.secret(f"{role}_db_password")
            if database not in own:
                with pytest.raises(psycopg.OperationalError, match="permission denied"):
                    psycopg.connect(**at)
                continue
            with psycopg.connect(**at) as connection:
                asked = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
                assert connection.execute(asked).fetchone() == (False, False, False)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host=HOST, port=team.postgres.port, user="optuna", dbname="optuna", password="wrong")


def test_no_password_is_on_a_command_line(team):
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for file in team.secrets.iterdir():
        if not file.name.startswith("tls"):
            assert file.read_text() not in shown, file.name


def test_an_account_that_is_there_is_kept(team):
    again = [sys.executable, DOCKER / "mlflow" / "add_user.py", "worker", team.secrets / "mlflow_flask_key"]
    subprocess.run(again, check=True, env=team.environment)
    assert call(team.url + READS[0], f"worker:{team.secret('worker_password')}") == 200


@pytest.mark.slow
def test_a_training_a_search_of_two_workers_and_the_registry_go_through_it(team, photos, tmp_path):
    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [DOCKER / "train" / "run.sh", *arguments], env=team.trainer(tmp_path / "home"), cwd=tmp_path, text=True,
            capture_output=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        secrets = [file.read_text() for file in team.secrets.iterdir() if not file.name.startswith("tls")]
        assert not any(secret in done.stdout + done.stderr for secret in secrets)
        return done.stdout

    data = ["--data", str(photos), *QUICK, "--epochs", "2"]
    trained = json.loads(run("distill", *data, "--json"))
    assert trained["student"]["test"]["accuracy"] >= 0
    found = json.loads(run("search", *data, "--trials", "4", "--workers", "2", "--final-seeds", "1", "--json"))
    assert found["trials"]["finished"] == 4
    run("pull", "photos-student@champion", str(tmp_path / "student"))
    assert (tmp_path / "student" / "model.safetensors").is_file()
    stranger = team.trainer(tmp_path / "home") | {"MLFLOW_TRACKING_USERNAME": "x", "MLFLOW_TRACKING_PASSWORD": "x"}
    refused = subprocess.run(
        [DOCKER / "train" / "run.sh", "pull", "photos-student@champion", str(tmp_path / "other")], env=stranger,
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "refuses access" in refused.stderr
    # What was stored lies in the object store, not on a disk of the server.
    assert not list(team.folder.glob("mlruns/**/*.safetensors"))


@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin"), reason="nginx is not installed")
def test_the_proxy_speaks_tls_and_asks_for_a_login_everywhere(team):
    url = team.proxy()
    trusted = ssl.create_default_context(cafile=str(team.secrets / "tls.crt"))
    for _ in range(50):
        try:
            assert call(f"{url}/health", context=trusted) == 200
            break
        except urllib.error.URLError:
            pass
    assert {call(url + path, context=trusted) for path in [*READS, "/version", "/static-files/index.html"]} == {401}
    worker = f"worker:{team.secret('worker_password')}"
    assert call(url + READS[0], worker, context=trusted) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE"):
        call(f"{url}/health")
