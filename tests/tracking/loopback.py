"""A small HTTP server of a test's own on loopback, which answers as a tracking server or a proxy before it would."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Status, type of content, content.
Answer = tuple[int, str, str]
Answers = Callable[[str, str], Answer]

# What Flask answers for a path that it does not have, as MLflow 2.22.5 and 3.17.2 were seen to do.
FLASK_404 = (
    404,
    "text/html; charset=utf-8",
    "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n<p>The requested URL was not "
    "found on the server. If you entered the URL manually please check your spelling and try again.</p>\n",
)


def as_json(content: object, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(content)


def mlflow_answers(version: str | None, *, logged_models: bool) -> Answers:
    """As MLflow answers the calls that tests make.

    Parameters
    ----------
    version:
        What ``/version`` says; None for a server, or a proxy before it, that does not say.
    logged_models:
        Whether the calls of MLflow 3.0 are there.
    """

    def answer(method: str, path: str) -> Answer:
        path = path.partition("?")[0]
        if path == "/version":
            return (200, "text/html; charset=utf-8", version) if version else FLASK_404
        if "/logged-models" in path or path.endswith("/runs/outputs"):
            return as_json({}) if logged_models else FLASK_404
        if path.startswith("/api/2.0/mlflow/"):
            return as_json({})
        return FLASK_404

    return answer


@contextmanager
def loopback(answers: Answers) -> Iterator[tuple[str, list[str]]]:
    """A server that answers so; its address, and the list of calls that it fills."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            calls.append(f"{self.command} {self.path.partition('?')[0]}")
            status, kind, content = answers(self.command, self.path)
            body = content.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _do

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", calls
        finally:
            server.shutdown()
            thread.join()
