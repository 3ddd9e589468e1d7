#!/bin/sh
# kd-mlflow in a container: passwords come from files and go into the environment of this one process.
set -eu
secrets=${SECRETS:-/run/secrets}
if [ -s "$secrets/worker_password" ] && [ -z "${MLFLOW_TRACKING_PASSWORD:-}" ]; then
    MLFLOW_TRACKING_USERNAME=${MLFLOW_TRACKING_USERNAME:-worker}
    MLFLOW_TRACKING_PASSWORD=$(cat "$secrets/worker_password")
    export MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
fi
if [ -s "$secrets/optuna_db_password" ] && [ -z "${KD_MLFLOW_STORAGE:-}" ]; then
    password=$(cat "$secrets/optuna_db_password")
    KD_MLFLOW_STORAGE=postgresql://optuna:$password@${POSTGRES_HOST:-postgres}:${POSTGRES_PORT:-5432}/optuna
    export KD_MLFLOW_STORAGE
fi
exec kd-mlflow "$@"
