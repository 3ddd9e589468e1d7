"""A real Postgres on loopback for tests: started, stopped and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest


class Postgres:
    """A server with an empty database of its own, in a folder that its user may read."""

    def __init__(self, password: str = "", user: str = "kd") -> None:
        if not shutil.which("initdb"):
            pytest.skip("Postgres is not installed")
        self.folder = Path(tempfile.mkdtemp(prefix="kd-postgres-"))
        # Postgres refuses to run as root.
        self.user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        owner = pwd.getpwnam(self.user)
        os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name, self.password = user, password
        secret = self.folder / "password"
        secret.write_text(password or "none")
        os.chown(secret, owner.pw_uid, owner.pw_gid)
        way = ["-A", "scram-sha-256", f"--pwfile={secret}"] if password else ["-A", "trust"]
        self._run("initdb", "-D", str(self.folder / "data"), "-U", user, *way, "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        password = f":{self.password}" if self.password else ""
        return f"postgresql://{self.name}{password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def restart(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self.start()

    def database(self, name: str) -> str:
        """The URL of another, empty database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url.removesuffix("postgres") + name

    def rows(self, query: str) -> list[tuple]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query).fetchall()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str) -> None:
        owner = pwd.getpwnam(self.user)
        asroot = {"user": owner.pw_uid, "group": owner.pw_gid} if os.getuid() == 0 else {}
        found = shutil.which(command[0])
        subprocess.run(
            [found, *command[1:]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **asroot
        )
