"""Google's token endpoint on loopback, for tests of a service account's key."""

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from unittest.mock import patch

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2 import service_account


class TokenServer:
    """Gives access tokens of one service account; runs while the `with` block does."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.refuses = False
        self.lasts_seconds = 3600
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.asked += 1
                good = {"access_token": server.token, "expires_in": server.lasts_seconds}
                bad = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
                body = json.dumps(bad if server.refuses else good).encode()
                self.send_response(400 if server.refuses else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def key_file(self) -> str:
        """The content of a service account's key file, as the console of Google Cloud gives it."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "tests",
                "private_key_id": "1",
                "private_key": pem.decode(),
                "client_email": "trainer@tests.iam.gserviceaccount.com",
                "token_uri": f"http://127.0.0.1:{self._server.server_port}/token",
            }
        )

    def __enter__(self) -> Self:
        # Beside the token, google-auth asks a fixed host where it may be used.
        required = "_is_regional_access_boundary_lookup_required"
        self._patch = patch.object(service_account.Credentials, required, lambda _: False)
        self._patch.start()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()
        self._server.shutdown()
        self._server.server_close()
