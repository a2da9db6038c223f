"""An OpenID Connect issuer for tests: real keys, which it rotates, and its two documents over HTTP on loopback."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "trunkline"
_MAKERS: dict[str, Any] = {
    "RS256": lambda: (rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": lambda: (ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": lambda: (Ed25519PrivateKey.generate(), OKPAlgorithm),
}


class Issuer:
    """Signs tokens with its newest key; `served` counts how often its keys were asked for."""

    def __init__(self) -> None:
        self.url = "https://issuer.test"
        self.served = 0
        self.is_away = False
        self._keys: dict[str, tuple[str, Any, dict[str, Any]]] = {}
        self._server: ThreadingHTTPServer | None = None
        self.rotate("first")

    def rotate(self, key_id: str, algorithm: str = "RS256", keep: bool = True) -> None:
        """A new key, which signs from now on; the others are published as long as they are kept."""
        private, kind = _MAKERS[algorithm]()
        public = {**json.loads(kind.to_jwk(private.public_key())), "kid": key_id, "use": "sig"}
        self._keys = {**(self._keys if keep else {}), key_id: (algorithm, private, public)}

    def jwks(self) -> str:
        """The published keys."""
        return json.dumps({"keys": [public for _, _, public in self._keys.values()]})

    def token(self, roles: Any = ("analyst",), tenant: Any = "acme", key_id: str = "", **claims: Any) -> str:
        """One that is good, but for the claims that are given; None leaves a claim out."""
        name = key_id or list(self._keys)[-1]
        algorithm, private, _ = self._keys[name]
        now = int(time.time())
        roles = list(roles) if isinstance(roles, tuple) else roles
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, "roles": roles}
        said |= {"tenant": tenant, **claims}
        present = {claim: value for claim, value in said.items() if value is not None}
        return jwt.encode(present, private, algorithm, headers={"kid": name})

    def start(self) -> str:
        """Serves its documents; returns its address, which is its name from now on."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = {
                    "/.well-known/openid-configuration": json.dumps(
                        {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                    ),
                    "/keys": issuer.jwks(),
                }.get(self.path)
                issuer.served += self.path == "/keys"
                self.send_response(503 if issuer.is_away or found is None else 200)
                self.end_headers()
                if not issuer.is_away and found is not None:
                    self.wfile.write(found.encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self.url

    def stop(self) -> None:
        """Serves no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
