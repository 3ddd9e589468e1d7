"""Give somebody an account: `add_user.py NAME FILE`, where the file holds the password; one that is there is kept."""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

name, file = sys.argv[1:]
secrets = Path(os.environ.get("SECRETS", "/run/secrets"))
server = os.environ.get("MLFLOW_TRACKING_URI", "http://mlflow:5000")
admin = f"admin:{(secrets / 'mlflow_admin_password').read_text().strip()}"
request = urllib.request.Request(
    f"{server}/api/2.0/mlflow/users/create",
    json.dumps({"username": name, "password": Path(file).read_text().strip()}).encode(),
    {"Content-Type": "application/json", "Authorization": "Basic " + base64.b64encode(admin.encode()).decode()},
)
for _ in range(120):
    try:
        urllib.request.urlopen(request, timeout=10).close()  # nosec B310  # the server that its owner names
        break
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        if "RESOURCE_ALREADY_EXISTS" in said:
            break
        sys.exit(f"The server refuses the account {name}: {error.code} {said[:200]}")
    except OSError:
        time.sleep(1)
else:
    sys.exit("The tracking server does not answer.")
