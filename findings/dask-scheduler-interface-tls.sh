#!/usr/bin/env bash
# Guess: `dask scheduler` takes a network interface and certificates together; a cluster's nodes need both.
# Seen: any of --tls-ca-file, --tls-cert, --tls-key beside --interface ends it with "Can not specify both interface and host"
# although no host was given. The same certificates named in dask's configuration (DASK_DISTRIBUTED__COMM__TLS__…) work.
# distributed 2026.8.0.
set -euo pipefail
folder=$(mktemp -d); scheduler=
trap '[ -z "$scheduler" ] || kill "$scheduler" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q dask==2026.8.0 distributed==2026.8.0 cryptography
cd "$folder"
"$folder/env/bin/python" - <<'PY'
from distributed.security import Security
security = Security.temporary()
open("cert.pem", "w").write(security.tls_client_cert)
open("key.pem", "w").write(security.tls_client_key)
open("ca.pem", "w").write(security.tls_ca_file)
PY
options=(--interface lo --port 0 --no-dashboard --scheduler-file)
code=0
timeout 60 "$folder/env/bin/dask" scheduler "${options[@]}" first.json --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem >said 2>&1 || code=$?
echo "by flags: exit code $code: $(grep -o 'Can not specify both interface and host' said | head -n 1)"
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=ca.pem DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT=cert.pem
export DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__KEY=key.pem DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true
"$folder/env/bin/dask" scheduler "${options[@]}" second.json >/dev/null 2>&1 & scheduler=$!
for _ in $(seq 60); do [ -s second.json ] && break; sleep 1; done
echo "by configuration: $(grep -o 'tls://[0-9.]*' second.json | head -n 1)"
[ "$code" -eq 1 ] && grep -q 'Can not specify both interface and host' said && grep -q 'tls://127.0.0.1' second.json
