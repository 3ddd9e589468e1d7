#!/bin/sh
# Databases, each of a role that owns it and reaches no other. The image runs this once, on an empty volume.
set -eu

sql() {
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "${POSTGRES_DB:-postgres}" "$@"
}

# A role, with the password that the file FILE__<ROLE>_PASSWORD holds: psql reads it, so that it stands in no argument.
role() {
    sql --set role="$1" --set file="$2" <<'SQL'
\set password `cat :'file'`
CREATE ROLE :"role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
SQL
}

database() {
    sql --set name="$1" --set owner="$2" <<'SQL'
CREATE DATABASE :"name" OWNER :"owner";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

for file in "$FILE__MLFLOW_PASSWORD" "$FILE__OPTUNA_PASSWORD"; do
    [ -s "$file" ] || { echo "$file is missing or empty; run docker/secrets.sh." >&2; exit 1; }
done

role mlflow "$FILE__MLFLOW_PASSWORD"
role optuna "$FILE__OPTUNA_PASSWORD"
database mlflow mlflow
database mlflow_auth mlflow
database optuna optuna
sql --command 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC'
