"""Blocking connections, and remembering who tried to make one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from sagaz_core.errors import NetworkBlockedError
from sagaz_core.network import NetworkAttempt, network_allowed, no_network
from sagaz_core.virtual_time import run


@pytest.fixture
def listener():
    """A server of our own: no attempt here leaves the machine, even if the block fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def connect(address):
    with socket.socket() as sock:
        sock.connect(address)


def test_a_connection_is_refused_with_its_address_and_remembered(listener):
    with (
        no_network() as block,
        pytest.raises(NetworkBlockedError, match=rf"127\.0\.0\.1:{listener[1]}.*--sagaz-allow-live"),
    ):
        connect(listener)
    assert block.attempts == [NetworkAttempt(f"127.0.0.1:{listener[1]}", "connect")]
    assert str(block.attempts[0]) == f"connect to 127.0.0.1:{listener[1]}"
    connect(listener)


def test_every_way_to_reach_an_address_is_refused(listener):
    with no_network() as block, socket.socket(type=socket.SOCK_DGRAM) as sock:
        for attempt in (
            lambda: sock.connect_ex(listener),
            lambda: sock.sendto(b"x", listener),
            lambda: sock.sendto(b"x", 0, listener),
            lambda: sock.sendmsg([b"x"], [], 0, listener),
            lambda: sock.connect(listener),
        ):
            with pytest.raises(NetworkBlockedError):
                attempt()
    assert [attempt.call for attempt in block.attempts] == ["connect_ex", "sendto", "sendto", "sendmsg", "connect"]


def test_an_attempt_is_remembered_when_the_error_is_swallowed(listener):
    with no_network() as block, contextlib.suppress(OSError):
        connect(listener)
    assert len(block.attempts) == 1


def test_a_name_is_not_looked_up():
    with no_network() as block, pytest.raises(NetworkBlockedError, match=r"shop\.example:443"):
        socket.create_connection(("shop.example", 443))
    assert [attempt.address for attempt in block.attempts] == ["shop.example:443"]


def test_a_client_of_the_standard_library_is_blocked():
    with no_network() as block, pytest.raises(OSError, match=r"shop\.example:80"):
        urllib.request.urlopen("http://shop.example/")
    assert len(block.attempts) == 1


def test_the_address_of_this_machine_may_be_asked_for():
    with no_network() as block:
        for host in ("localhost", b"127.0.0.1", "::1", "", None):
            with contextlib.suppress(socket.gaierror):  # a machine without IPv6
                socket.getaddrinfo(host, 80)
    assert block.attempts == []


def test_threads_are_blocked_too(listener):
    async def main():
        await asyncio.to_thread(connect, listener)

    with no_network() as block, pytest.raises(NetworkBlockedError):
        run(main())
    with no_network() as other:
        thread = threading.Thread(target=swallow, args=[listener])
        thread.start()
        thread.join()
    assert (len(block.attempts), len(other.attempts)) == (1, 1)


def swallow(address):
    with contextlib.suppress(OSError):
        connect(address)


def test_an_ordinary_loop_is_blocked_too(listener):
    async def main():
        await asyncio.open_connection(*listener)

    with no_network() as block, pytest.raises(NetworkBlockedError):
        asyncio.run(main())
    assert len(block.attempts) == 1


def test_an_error_of_the_network_is_also_a_connection_error():
    assert issubclass(NetworkBlockedError, ConnectionError)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_socket_is_blocked_and_a_pair_works(tmp_path):
    path = str(tmp_path / "s")
    with no_network() as block:
        left, right = socket.socketpair()
        with left, right:
            left.sendall(b"ping")
            assert right.recv(4) == b"ping"
        for address in (path, path.encode()):
            with socket.socket(socket.AF_UNIX) as sock, pytest.raises(NetworkBlockedError, match=path):
                sock.connect(address)
    assert [attempt.address for attempt in block.attempts] == [path, path]


def test_what_is_allowed_is_reached(listener):
    for allowed in ("127.0.0.1", f"127.0.0.1:{listener[1]}"):
        with no_network(allow=[allowed]) as block:
            connect(listener)
        assert block.attempts == []
    with no_network(allow=["127.0.0.1:1"]), pytest.raises(NetworkBlockedError):
        connect(listener)


def test_what_is_ours_can_be_exempted_in_its_context_only(listener):
    with no_network() as block:
        with network_allowed():
            connect(listener)
            thread = threading.Thread(target=swallow, args=[listener])
            thread.start()
            thread.join()
        swallow(listener)
    assert len(block.attempts) == (1 if getattr(sys.flags, "thread_inherit_context", 0) else 2)


def test_blocks_can_be_nested(listener):
    with no_network() as outer:
        with no_network(allow=["127.0.0.1"]) as inner:
            connect(listener)
        swallow(listener)
    connect(listener)
    assert (len(outer.attempts), len(inner.attempts)) == (1, 0)


def test_everything_is_as_it_was_after_the_block():
    before = (vars(socket.socket).copy(), socket.getaddrinfo)
    with no_network():
        assert "connect" in vars(socket.socket)
    assert (vars(socket.socket).copy(), socket.getaddrinfo) == before


def test_a_socket_in_use_may_go_on(listener):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer, no_network():
            client.sendall(b"on")
            client.sendmsg([b"ward"])
            assert peer.recv(6, socket.MSG_WAITALL) == b"onward"


def test_importing_the_module_imports_no_socket():
    code = "import sys, sagaz_core.network; print('socket' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
