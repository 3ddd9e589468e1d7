#!/bin/sh
# The tracking server: every setting from the environment, every password from a file, none on a command line.
set -eu
secrets=${SECRETS:-/run/secrets}
secret() {
    [ -s "$secrets/$1" ] || { echo "The secret $1 is missing; docker/secrets.sh makes it." >&2; exit 2; }
    cat "$secrets/$1"
}
umask 077
database=${POSTGRES_HOST:-postgres}:${POSTGRES_PORT:-5432}
MLFLOW_DB_PASSWORD=$(secret mlflow_db_password)
MLFLOW_BACKEND_STORE_URI=postgresql://mlflow:$MLFLOW_DB_PASSWORD@$database/mlflow
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_flask_key)
MLFLOW_AUTH_ADMIN_USERNAME=admin
MLFLOW_AUTH_ADMIN_PASSWORD=$(secret mlflow_admin_password)
AWS_ACCESS_KEY_ID=$(secret s3_access_key)
AWS_SECRET_ACCESS_KEY=$(secret s3_secret_key)
MLFLOW_S3_ENDPOINT_URL=${S3_ENDPOINT:-http://objects:9000}
MLFLOW_ARTIFACTS_DESTINATION=s3://${S3_BUCKET:-mlflow}
# Any will do for a store of one's own, but there must be one.
AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}
# One process of MLflow and no job runner: half a gigabyte instead of three.
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
# Host headers that are answered: those of the proxy and of the services beside it.
MLFLOW_SERVER_ALLOWED_HOSTS=${ALLOWED_HOSTS:?name the hosts by which the server is reached}
MLFLOW_AUTH_CONFIG_PATH=$(mktemp -d)/auth.ini
# Whoever has an account may read and write what the team has; nobody else may do anything.
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = EDIT
database_uri = postgresql://mlflow:$MLFLOW_DB_PASSWORD@$database/mlflow_auth
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# Without it the server hashes a password at every request, and does little else.
auth_cache_ttl_seconds = 60
INI
export MLFLOW_BACKEND_STORE_URI MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD \
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION MLFLOW_S3_ENDPOINT_URL MLFLOW_ARTIFACTS_DESTINATION \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION MLFLOW_SERVER_ALLOWED_HOSTS MLFLOW_AUTH_CONFIG_PATH
python "$(dirname "$0")/make_bucket.py" "${S3_BUCKET:-mlflow}"
exec mlflow server --app-name basic-auth --host "${LISTEN:-0.0.0.0}" --port "${PORT:-5000}" --workers 1
