#!/usr/bin/env bash
# Guess: obstore.store.from_url("https://server/…") is a web server's client: what it asks for is a plain GET of that address.
# Seen: for a server named as Amazon's are, it is an S3 client: the request goes to the endpoint in AWS_ENDPOINT_URL (another
# server altogether) and is signed with the keys of the environment. A public bucket's https address so needs credentials,
# and shows them to nobody whom the address names. For Google's storage.googleapis.com the same call gives a web client.
# obstore 0.12.1.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q obstore==0.12.1
cat >"$folder/ask.py" <<'PY'
import os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import obstore

asked = []

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append((self.path, "Authorization" in self.headers))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.send_header("ETag", '"a"')
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 10:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"me")

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ALLOW_HTTP": "true",
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
}
amazon = obstore.store.from_url("https://some-bucket.s3.us-west-2.amazonaws.com")
google = obstore.store.from_url("https://storage.googleapis.com")
print("from_url of Amazon's https address:", type(amazon).__name__, "- of Google's:", type(google).__name__)
data = bytes(obstore.get(amazon, "image/zarr.json").bytes())
print("the local server was asked for", asked[0][0], "with" if asked[0][1] else "without", "a signature; answer:", data)
web = obstore.store.HTTPStore.from_url("https://some-bucket.s3.us-west-2.amazonaws.com")
print("HTTPStore.from_url of the same:", type(web).__name__)
as_seen = type(amazon).__name__ == "S3Store" and type(google).__name__ == "HTTPStore"
sys.exit(not (as_seen and data == b"me" and asked[0][1] and type(web).__name__ == "HTTPStore"))
PY
"$folder/env/bin/python" "$folder/ask.py"
