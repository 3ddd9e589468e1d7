"""Makes an account of the server, unless it is there: account.py NAME FILE, where FILE holds the password.

The administrator asks for it: MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlflow.exceptions import RestException
from mlflow.server import get_app_client


def main(name: str, file: str) -> None:
    password = Path(file).read_text().strip()
    accounts = get_app_client("basic-auth", os.environ["MLFLOW_TRACKING_URI"])
    try:
        accounts.get_user(name)
        print(f"{name} is there already; its password stays as it is.")
    except RestException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        accounts.create_user(name, password)
        print(f"{name} may log in.")


if __name__ == "__main__":
    main(*sys.argv[1:])
