#!/bin/sh
# `mlflow server` of a team: Postgres behind it, an object store that only the server sees, a login for everyone.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for name in PGHOST PGUSER PGPASSWORD MLFLOW_S3_ENDPOINT_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY KD_BUCKET \
    MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_SERVER_ALLOWED_HOSTS KD_LISTEN KD_PORT; do
    eval "value=\${$name:-}"
    [ -n "$value" ] || { echo "serve.sh needs $name; see docker/compose.yaml." >&2; exit 1; }
done

export MLFLOW_AUTH_CONFIG_PATH="$here/basic_auth.ini"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false

python "$here/bucket.py" "$KD_BUCKET"
exec mlflow server --app-name basic-auth --workers 1 --host "$KD_LISTEN" --port "$KD_PORT" \
    --backend-store-uri postgresql:///mlflow --serve-artifacts --artifacts-destination "s3://$KD_BUCKET"
