"""The team's server without containers: what docker/compose.yaml starts, on loopback, from the same files."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from string import Template

import requests
import yaml
from dotenv import dotenv_values
from moto.server import ThreadedMotoServer

from tests.search.postgres import Postgres

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SETTINGS = dotenv_values(DOCKER / ".env")
# What clients set that do not go through the proxy.
DIRECT = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/default.conf;
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_secrets(folder: Path, name: str = "localhost") -> Path:
    subprocess.run([DOCKER / "secrets.sh", name, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


def environment(service: str, places: dict[str, str], **settings: str) -> dict[str, str]:
    """What compose.yaml gives to a service, with the places of this machine for those in its containers."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "PYTHONPATH") if name in os.environ}
    values = {name: Template(value).substitute(SETTINGS | settings) for name, value in _given(service).items()}
    for container, here in places.items():
        values = {name: value.replace(container, here) for name, value in values.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path} | values | settings


def _given(service: str) -> dict[str, str]:
    return COMPOSE["services"][service]["environment"]


class TeamPostgres(Postgres):
    """A Postgres that asks everyone for a password, as docker/postgres/init.sh has prepared it."""

    def __init__(self, secrets: Path) -> None:
        password = (secrets / "postgres_admin").read_text()
        super().__init__(password, user="postgres")
        given = environment("postgres", {"/run/secrets": str(secrets)}, PGHOST="127.0.0.1", PGPORT=str(self.port))
        subprocess.run([DOCKER / "postgres/init.sh"], check=True, env=given | {"PGPASSWORD": password})

    def login(self, role: str, database: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"


class Team:
    """Postgres, an object store, MLflow with a login, and nginx where it is installed.

    Attributes
    ----------
    url: the MLflow server itself, where the workers of compose.yaml reach it.
    proxy: the address that people use; empty without nginx.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = make_secrets(folder / "secrets")
        self.port, self.proxy_port = free_port(), free_port()
        self.postgres = TeamPostgres(self.secrets)
        self.store_port = free_port()
        self.start_store()
        # It tells of every call.
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self.url = f"http://127.0.0.1:{self.port}"
        server = self._environment(
            "mlflow",
            PGHOST="127.0.0.1",
            PGPORT=str(self.postgres.port),
            KD_LISTEN="127.0.0.1",
            KD_PORT=str(self.port),
            KD_HTTPS_PORT=str(self.proxy_port),
        )
        self._process([DOCKER / "from-files.sh", DOCKER / "mlflow/serve.sh"], server)
        self.wait(lambda: requests.get(f"{self.url}/health", timeout=5))
        account = [DOCKER / "from-files.sh", sys.executable, DOCKER / "mlflow/account.py"]
        account += [SETTINGS["KD_ACCOUNT"], self.secrets / "mlflow_account"]
        subprocess.run(account, check=True, env=self._environment("account"), stdout=subprocess.DEVNULL)
        self.proxy = f"https://localhost:{self.proxy_port}" if shutil.which("nginx") else ""
        if self.proxy:
            self._start_proxy()

    def _start_proxy(self) -> None:
        given = self._environment("proxy", KD_PROXY_LISTEN=f"127.0.0.1:{self.proxy_port}")
        template = (DOCKER / "proxy/default.conf.template").read_text()
        filter = re.compile(given["NGINX_ENVSUBST_FILTER"])
        known = {name: value for name, value in given.items() if filter.search(name)}
        (self.folder / "default.conf").write_text(Template(template).safe_substitute(known))
        (self.folder / "nginx.conf").write_text(NGINX.format(folder=self.folder))
        self._process(["nginx", "-p", self.folder, "-c", self.folder / "nginx.conf"], given)
        self.wait(lambda: requests.get(f"{self.proxy}/health", timeout=5, verify=self.certificate))

    def start_store(self) -> None:
        """An S3 of this process; what it holds outlives its being stopped."""
        self.store = ThreadedMotoServer(ip_address="127.0.0.1", port=self.store_port, verbose=False)
        self.store.start()

    def stop_store(self) -> None:
        self.store.stop()

    @property
    def certificate(self) -> str:
        return str(self.secrets / "tls_certificate")

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def login(self, name: str = "kd") -> tuple[str, str]:
        return name, self.secret("mlflow_admin" if name == "admin" else "mlflow_account")

    def client_environment(self) -> dict[str, str]:
        """What a person or a worker sets, through the proxy where there is one."""
        name, password = self.login()
        direct = {name: _given("kd-mlflow")[name] for name in DIRECT}
        return (direct if not self.proxy else {}) | {
            "MLFLOW_TRACKING_URI": self.proxy or self.url,
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": password,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": self.certificate,
            "KD_MLFLOW_STORAGE": self.postgres.login("optuna", "optuna"),
            "PGPASSWORD": self.secret("optuna_database"),
        }

    def wait(self, answer: Callable[[], requests.Response], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while True:
            assert all(process.poll() is None for process in self.processes), self.log.read_text()
            try:
                if answer().ok:
                    return
            except requests.ConnectionError:
                pass
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def close(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        self.stop_store()
        self.postgres.close()

    def _environment(self, service: str, **settings: str) -> dict[str, str]:
        places = {
            "/run/secrets": str(self.secrets),
            "http://rustfs:9000": f"http://127.0.0.1:{self.store_port}",
            "mlflow:5000": f"127.0.0.1:{self.port}",
        }
        return environment(service, places, **settings)

    def _process(self, command: list[str | Path], given: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, env=given, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
            )
