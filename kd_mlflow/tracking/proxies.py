"""The proxy that the environment puts between this machine and a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy

from kd_mlflow.tracking.redaction import redact

# As requests reads them: the scheme's own before that of all, each in both cases.
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy for one server.

    Attributes
    ----------
    url:
        Without credentials.
    variable:
        The environment variable that names it; empty where the system's settings do.
    host:
        The server that it stands before, as NO_PROXY takes it.
    """

    url: str
    variable: str
    host: str

    def __str__(self) -> str:
        return f"the proxy {self.url}" + (f" ({self.variable})" if self.variable else "")

    @property
    def way_round(self) -> str:
        """What a person does if the server is reached without it."""
        return f"if the server is reached without a proxy, add {self.host} to NO_PROXY"


def proxy_of(uri: str) -> Proxy | None:
    """The proxy through which a request to a URI goes; None if it goes straight."""
    try:
        chosen = select_proxy(uri, get_environ_proxies(uri))
    except ValueError:  # no URL at all, which is somebody else's sentence
        return None
    if not chosen:
        return None
    names = (f"{urlsplit(uri).scheme}_proxy", "all_proxy")
    spellings = [spelling for name in names for spelling in (name, name.upper())]
    variable = next((name for name in spellings if os.environ.get(name) == chosen), "")
    return Proxy(redact_proxy(chosen), variable, urlsplit(uri).hostname or uri)


def proxy_variables() -> dict[str, str]:
    """The variables that are set, credentials taken out."""
    names = [spelling for name in VARIABLES for spelling in (name, name.upper())]
    return {name: redact_proxy(os.environ[name]) for name in names if os.environ.get(name)}


def redact_proxy(value: str) -> str:
    """A proxy's address without credentials; it may lack the scheme."""
    return redact(value) if "://" in value else redact(f"http://{value}").removeprefix("http://")
