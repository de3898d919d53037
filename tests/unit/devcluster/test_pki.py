"""The certificates of a cluster: who they name, what they are good for, who may read them."""

import base64
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from daybreak_devcluster.kubeconfig import write_kubeconfig
from daybreak_devcluster.pki import Authority


def handshake(directory: Path, client_authority: str, client: str) -> str:
    """Connect a client to a server that asks for a certificate of `ca`; the client's name."""
    server_side, client_side = socket.socketpair()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "server.crt", directory / "server.key")
    server.load_verify_locations(directory / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    seen: list[str] = []

    def serve() -> None:
        try:
            with server.wrap_socket(server_side, server_side=True) as secured:
                subject = (secured.getpeercert() or {})["subject"]
                seen.extend(str(pair[1]) for group in subject for pair in group)
                secured.sendall(b"ok")
        except ssl.SSLError:
            server_side.close()

    thread = threading.Thread(target=serve)
    thread.start()
    context = ssl.create_default_context(cafile=directory / f"{client_authority}.crt")
    context.load_cert_chain(directory / f"{client}.crt", directory / f"{client}.key")
    try:
        with context.wrap_socket(client_side, server_hostname="127.0.0.1") as secured:
            if secured.recv(2) != b"ok":
                raise ConnectionError("closed")
    finally:
        client_side.close()
        thread.join()
    return "/".join(seen)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    ours, other = Authority("ours"), Authority("other")
    for name, authority in (("ca", ours), ("other-ca", other)):
        (tmp_path / f"{name}.crt").write_bytes(authority.certificate)
    ours.server("server", ["127.0.0.1", "localhost"]).write(tmp_path, "server")
    ours.client("someone", ("system:masters",)).write(tmp_path, "someone")
    other.client("stranger", ("system:masters",)).write(tmp_path, "stranger")
    return tmp_path


def test_a_client_is_known_by_name_and_group(directory: Path) -> None:
    """A real TLS handshake gives the server the client's user and groups."""
    assert handshake(directory, "ca", "someone") == "system:masters/someone"


def test_another_authority_s_certificates_are_worthless(directory: Path) -> None:
    """A client of another authority is refused, and so is a server towards its clients."""
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(directory, "ca", "stranger")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(directory, "other-ca", "someone")


def test_keys_and_kubeconfigs_are_private_and_complete(directory: Path) -> None:
    """Nobody else can read them, and a kubeconfig carries its certificates inline."""
    authority = Authority("ours")
    path = directory / "kubeconfig"
    pair = authority.client("admin")
    write_kubeconfig(path, "https://127.0.0.1:1", authority.certificate, "admin", pair)
    for secret in (path, directory / "someone.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    document = yaml.safe_load(path.read_text())
    raw = base64.b64decode(document["users"][0]["user"]["client-certificate-data"])
    subject = x509.load_pem_x509_certificate(raw).subject
    assert [item.value for item in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["admin"]
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
