"""A proxy in the environment that stands between a command and the tracking server is named, with the way round it."""

from __future__ import annotations

import pytest

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.proxies import proxy_of, proxy_variables
from tests.tracking.loopback import loopback, mlflow_answers

VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
# Nothing listens on the port of "discard".
DEAD = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.fault(
    "a proxy of the environment stands before the tracking server and does not reach it",
    "the sentence names the proxy without its password, the variable and NO_PROXY",
)
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("value", [f"http://me:secret@{DEAD}", f"me:secret@{DEAD}"])
def test_a_dead_proxy_is_named_without_its_password(variable: str, value: str, monkeypatch) -> None:
    monkeypatch.setenv(variable, value)
    with (
        loopback(mlflow_answers("3.17.2", logged_models=True)) as (uri, calls),
        pytest.raises(InputError) as error,
    ):
        connect(uri)
    assert calls == []
    said = str(error.value)
    shown = value.replace("me:secret", "***")
    assert f"does not answer through the proxy {shown} ({variable}); if the server is reached without a proxy, " in said
    assert "add 127.0.0.1 to NO_PROXY" in said
    assert "secret" not in said


@pytest.mark.parametrize("status", [200, 403, 404, 407, 502, 503])
def test_what_a_proxy_answers_itself_is_said_to_come_through_it(status: int, monkeypatch) -> None:
    with loopback(lambda method, path: (status, "text/html", "<h1>squid</h1>")) as (proxy, _):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(InputError, match=rf"through the proxy {proxy} \(HTTP_PROXY\)") as error:
            connect("http://mlflow.example:5000")
    assert f"status {status}" in str(error.value)
    assert "add mlflow.example to NO_PROXY" in str(error.value)


@pytest.mark.parametrize("bypass", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_no_proxy_leads_round_it(bypass: str, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{DEAD}")
    monkeypatch.setenv("NO_PROXY", bypass)
    with loopback(mlflow_answers("3.17.2", logged_models=True)) as (uri, _):
        assert proxy_of(uri) is None
        assert connect(uri).tracking_uri == uri


def test_a_sentence_without_a_proxy_names_none() -> None:
    with pytest.raises(InputError, match="does not answer; start it") as error:
        connect(f"http://{DEAD}")
    assert "PROXY" not in str(error.value)


def test_the_proxy_of_the_other_scheme_is_not_this_server_s(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert proxy_of("http://mlflow.example") is None
    assert str(proxy_of("https://mlflow.example")) == "the proxy http://proxy:3128 (HTTPS_PROXY)"


def test_variables_are_listed_without_passwords(monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:p@ss@proxy:1080")
    monkeypatch.setenv("no_proxy", "localhost,.example")
    assert proxy_variables() == {"ALL_PROXY": "socks5://***@proxy:1080", "no_proxy": "localhost,.example"}
