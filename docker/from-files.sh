#!/bin/sh
# Gives a command its passwords: for every variable FILE__NAME, NAME becomes the content of the file that it names.
set -eu
for name in $(env | sed -n 's/^FILE__\([A-Z][A-Z0-9_]*\)=.*/\1/p'); do
    eval "file=\$FILE__$name"
    if [ ! -s "$file" ] || [ ! -r "$file" ]; then
        echo "$file, which is to hold $name, is missing, empty or not readable; run docker/secrets.sh." >&2
        exit 1
    fi
    export "$name=$(cat "$file")"
    unset "FILE__$name"
done
exec "$@"
