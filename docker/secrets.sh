#!/bin/sh
# Random passwords for every service, and a certificate for the proxy, into the folder secrets/ beside this script.
# What is there already is kept: delete a file to have it made anew.
set -eu
name=${1:-}
[ -n "$name" ] || { echo "usage: docker/secrets.sh HOSTNAME   (the name by which people reach the server)" >&2; exit 2; }
folder=${SECRETS:-$(dirname "$0")/secrets}
# The folder is closed to others; in it each file can be read by the service that it is mounted into.
mkdir -p "$folder"
chmod 700 "$folder"
for secret in postgres_password mlflow_db_password optuna_db_password mlflow_admin_password mlflow_flask_key \
    worker_password s3_access_key s3_secret_key; do
    [ -s "$folder/$secret" ] && continue
    od -An -N 24 -t x1 /dev/urandom | tr -d ' \n' > "$folder/$secret"
    chmod 444 "$folder/$secret"
done
if [ ! -s "$folder/tls.key" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 825 -subj "/CN=$name" -addext "subjectAltName=DNS:$name" \
        -keyout "$folder/tls.key" -out "$folder/tls.crt" 2> /dev/null
    chmod 444 "$folder/tls.key" "$folder/tls.crt"
fi
echo "The secrets are in $folder; the certificate there is self-signed: put your own in its place."
