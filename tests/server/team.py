"""The services of docker/compose.yaml as processes of this machine, started by the same scripts and settings."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from tests.conftest import ROOT
from tests.search.postgres import Postgres

DOCKER = ROOT / "docker"
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Team:
    """Postgres, an object store that speaks S3, the tracking server and, where there is nginx, the proxy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secrets = folder, folder / "secrets"
        self.port, self.store_port, self.proxy_port = free_port(), free_port(), free_port()
        self.running = ExitStack()
        subprocess.run([DOCKER / "secrets.sh", "localhost"], check=True, env=self.environment, capture_output=True)
        self.postgres = Postgres(self.secret("postgres_password"), user="postgres")
        self.running.callback(self.postgres.close)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """What compose.yaml gives its services."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KD_", "AWS_"))}
        return kept | {
            "SECRETS": str(self.secrets),
            "POSTGRES_HOST": HOST,
            "S3_ENDPOINT": f"http://{HOST}:{self.store_port}",
            "ALLOWED_HOSTS": f"localhost:{self.proxy_port},{HOST}:{self.port}",
            "LISTEN": HOST,
            "PORT": str(self.port),
            "MLFLOW_TRACKING_URI": self.url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def trainer(self, home: Path) -> dict[str, str]:
        """What a container that trains is given."""
        return self.environment | {
            "POSTGRES_PORT": str(self.postgres.port), "KD_MLFLOW_HOME": str(home), "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1", "HOME": str(home),
        }  # fmt: skip

    def close(self) -> None:
        self.running.close()

    def _start(self) -> None:
        environment = self.environment | {"POSTGRES_PORT": str(self.postgres.port)}
        own = {"PGHOST": HOST, "PGPORT": str(self.postgres.port), "PGPASSWORD": self.secret("postgres_password")}
        subprocess.run([DOCKER / "postgres" / "init.sh"], check=True, env=environment | own)
        store = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.store_port)]
        self._process("objects", store, environment)
        self._process("mlflow", [DOCKER / "mlflow" / "serve.sh"], environment)
        self.answers(f"{self.url}/health")
        worker = [sys.executable, DOCKER / "mlflow" / "add_user.py", "worker", self.secrets / "worker_password"]
        subprocess.run(worker, check=True, env=environment)

    def proxy(self) -> str:
        """nginx with the template of docker/proxy; the URL that it answers at."""
        template = (DOCKER / "proxy" / "default.conf.template").read_text()
        for name, value in {"SERVER_NAME": "localhost", "SECRETS": str(self.secrets), "UPSTREAM": self.url}.items():
            template = template.replace(f"${{{name}}}", value)
        template = template.replace("listen 8443", f"listen {HOST}:{self.proxy_port}")
        template = template.replace("proxy_set_header Host $host", "proxy_set_header Host $http_host")
        place = self.folder / "nginx"
        place.mkdir()
        (place / "nginx.conf").write_text(
            f"pid {place}/pid; error_log {place}/error.log; daemon off;\n"
            f"events {{}}\nhttp {{ access_log off; client_body_temp_path {place}; proxy_temp_path {place}/proxy;\n"
            f"fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n{template}}}\n"
        )
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        self._process("proxy", [nginx, "-p", place, "-c", place / "nginx.conf"], self.environment)
        return f"https://localhost:{self.proxy_port}"

    def answers(self, url: str) -> None:
        """Wait until something answers."""
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "mlflow.log").read_text()[-3000:])

    def _process(self, name: str, command: list, environment: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [str(part) for part in command], env=environment, cwd=self.folder, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.running.callback(_end, process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
