#!/bin/sh
# One database for MLflow, one for MLflow's users, one for Optuna; a role each that owns its own and sees no other.
set -eu
secrets=${SECRETS:-/run/secrets}
for secret in mlflow_db_password optuna_db_password; do
    [ -s "$secrets/$secret" ] || { echo "The secret $secret is missing." >&2; exit 2; }
done
export MLFLOW_DB_PASSWORD OPTUNA_DB_PASSWORD
MLFLOW_DB_PASSWORD=$(cat "$secrets/mlflow_db_password")
OPTUNA_DB_PASSWORD=$(cat "$secrets/optuna_db_password")
psql -v ON_ERROR_STOP=1 --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv optuna_password OPTUNA_DB_PASSWORD
CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'mlflow_password';
CREATE ROLE optuna LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'optuna_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE optuna OWNER optuna;
REVOKE ALL ON DATABASE mlflow, mlflow_auth, optuna, postgres, template1 FROM PUBLIC;
SQL
