#!/bin/sh
# A self-signed certificate for the gateway, where the folder TLS_FOLDER has none: to try it, not to keep it.
set -eu
cd "${TLS_FOLDER:-/tls}"
if [ -e tls.crt ] && [ -e tls.key ]; then
    exit 0
fi
name="${SERVER_NAME:-localhost}"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 90 \
    -subj "/CN=$name" -addext "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1" \
    -keyout tls.key -out tls.crt 2>/dev/null
chmod 0600 tls.key
echo "made a self-signed certificate for $name"
