#!/bin/sh
# Makes every password and key of the team's server, and a certificate for its name: secrets.sh [NAME] [FOLDER].
# What is there already is never written again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
name=${1:-$(sed -n 's/^KD_SERVER_NAME=//p' "$here/.env")}
folder=${2:-$here/secrets}

command -v openssl >/dev/null || { echo "secrets.sh needs openssl; install it." >&2; exit 1; }
case $name in
    '' | *[!A-Za-z0-9.-]*) echo "secrets.sh: '$name' is no host name; set KD_SERVER_NAME in docker/.env." >&2; exit 2 ;;
esac
if [ -e "$folder" ]; then
    echo "$folder is there already; its passwords are in use. Move it away to make new ones." >&2
    exit 1
fi

# The folder keeps other people of this machine out; the files in it are read by the users of several containers,
# for which Compose mounts each as it is.
umask 077
making=$folder.$$
mkdir -p "$making"
trap 'rm -rf "$making"' EXIT
for secret in postgres_admin mlflow_database optuna_database mlflow_admin mlflow_account flask_key s3_secret_key; do
    openssl rand -hex 32 | tr -d '\n' >"$making/$secret"
done
openssl rand -hex 10 | tr -d '\n' >"$making/s3_access_key"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 825 -subj "/CN=$name" \
    -addext "subjectAltName=DNS:$name" -keyout "$making/tls_key" -out "$making/tls_certificate" 2>/dev/null
chmod 444 "$making"/*
mv "$making" "$folder"
echo "$folder: seven passwords and keys of 256 bits, a name for the object store, a certificate for $name."
