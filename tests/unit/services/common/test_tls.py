"""Contexts that take up renewed files."""

import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from devmentor.common import tls
from tests.unit.services.authority import Authority


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


def serial(cert: bytes | Path | None) -> int:
    if isinstance(cert, Path):
        return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number
    assert cert is not None
    return x509.load_der_x509_certificate(cert).serial_number


def renew(files: tuple[Path, Path], ca: Authority) -> None:
    for old, new in zip(files, ca.issue("renewed"), strict=True):
        shutil.copy(new, old)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[int, int]:
    """The serial numbers that the client's and the server's side showed."""
    seen: list[int] = []

    def accept() -> None:
        raw, _ = listener.accept()
        with server.wrap_socket(raw, server_side=True) as channel:
            seen.append(serial(channel.getpeercert(binary_form=True)))
            channel.sendall(b"!")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        with (
            socket.create_connection(listener.getsockname()) as raw,
            client.wrap_socket(raw, server_hostname="127.0.0.1") as channel,
        ):
            channel.recv(1)
            shown = serial(channel.getpeercert(binary_form=True))
        accepting.join()
    return seen[0], shown


def test_both_sides_show_the_renewed_certificate_after_a_reload(ca: Authority) -> None:
    ours, theirs = ca.issue("client"), ca.issue("server")
    contexts = tls.server_context(*theirs, ca.path), tls.client_context(ca.path, *ours)
    before = handshake(*contexts)
    assert before == (serial(ours[0]), serial(theirs[0]))
    renew(ours, ca)
    renew(theirs, ca)
    assert handshake(*contexts) == before
    tls.reload()
    assert handshake(*contexts) == (serial(ours[0]), serial(theirs[0])) != before


def test_a_renewed_ca_is_trusted_by_a_client_that_shows_nothing(ca: Authority, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    successor = Authority(tmp_path / "next", "successor")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*successor.issue("server"))
    client = tls.client_context(ca.path)
    ca.path.write_bytes(successor.path.read_bytes())
    tls.reload()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as raw,
    ):
        accepted, _ = listener.accept()
        answering = threading.Thread(target=lambda: server.wrap_socket(accepted, server_side=True).close())
        answering.start()
        client.wrap_socket(raw, server_hostname="127.0.0.1").close()
        answering.join()


def test_a_certificate_without_its_key_leaves_the_former_pair_in_force(
    ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ca.issue("client")
    server, client = tls.server_context(*ca.issue("server"), ca.path), tls.client_context(ca.path, *ours)
    before = handshake(server, client)
    shutil.copy(ca.issue("renewed")[0], ours[0])
    tls.reload()
    assert handshake(server, client) == before
    assert [record.message for record in caplog.records if record.levelname == "ERROR"]
