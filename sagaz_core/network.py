"""Keeping a replay off the network, and remembering what it tried to reach."""

from __future__ import annotations

import contextlib
import functools
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.errors import NetworkBlockedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class NetworkAttempt(NamedTuple):
    """One attempt to reach the network that was blocked: `host:port` (or a path), and the call that was made."""

    address: str
    call: str

    def __str__(self) -> str:
        return f"{self.call} to {self.address}"


class NetworkBlock:
    """What `no_network()` gives: the attempts that were blocked while it was in force, oldest first."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self.attempts: list[NetworkAttempt] = []
        self._allow = frozenset(allow)

    def allows(self, address: str) -> bool:
        """Say whether `host:port` was allowed, by itself or by its host."""
        return address in self._allow or address.rpartition(":")[0] in self._allow


_blocks: list[NetworkBlock] = []
_exempt: ContextVar[bool] = ContextVar("sagaz_network_allowed", default=False)


def blocked(address: str, call: str) -> NetworkBlockedError:
    """Note an attempt in the innermost `no_network()`, if there is one, and return the error to raise for it."""
    if _blocks:
        _blocks[-1].attempts.append(NetworkAttempt(address, call))
    return NetworkBlockedError(
        f"{call} to {address} was blocked: there is no network in virtual time or in a replay; "
        f"pass fakes, or --sagaz-allow-live"
    )


@contextlib.contextmanager
def no_network(*, allow: Iterable[str] = ()) -> Iterator[NetworkBlock]:
    """Block connections made by Python sockets, in every thread, while it is open.

    `connect`, `connect_ex`, `sendto` and `sendmsg` to an address, and the look-up of a host name, raise
    `NetworkBlockedError`, and are kept in `.attempts` for the caller that swallows the error. `allow` has the hosts,
    or `host:port`, that may be reached. Unix sockets count as network; a socket pair needs no connection, and works.
    A client that does not use Python's sockets, such as libpq or gRPC, is not seen.
    """
    import socket

    block = NetworkBlock(allow)
    if not _blocks:
        _install(socket)
    _blocks.append(block)
    try:
        yield block
    finally:
        _blocks.remove(block)
        if not _blocks:
            _uninstall()


@contextlib.contextmanager
def network_allowed() -> Iterator[None]:
    """Exempt what runs in this context (task, or `asyncio.to_thread`) from `no_network`: our own stores."""
    token = _exempt.set(True)
    try:
        yield
    finally:
        _exempt.reset(token)


_undo: list[Callable[[], None]] = []


def _install(socket: Any) -> None:
    cls = socket.socket
    for call, position in {"connect": 0, "connect_ex": 0, "sendto": -1, "sendmsg": 3}.items():
        if hasattr(cls, call):
            # The methods are inherited from C, so taking ours away again is enough.
            inherited = call not in vars(cls)
            original = getattr(cls, call)
            setattr(cls, call, _guarded(original, call, position))
            _undo.append(
                functools.partial(delattr, cls, call) if inherited else functools.partial(setattr, cls, call, original)
            )
    getaddrinfo = socket.getaddrinfo
    socket.getaddrinfo = _guarded_lookup(getaddrinfo, socket)
    _undo.append(functools.partial(setattr, socket, "getaddrinfo", getaddrinfo))


def _uninstall() -> None:
    while _undo:
        _undo.pop()()


def _guarded(original: Any, call: str, position: int) -> Any:
    @functools.wraps(original)
    def guarded(sock: Any, *args: Any) -> Any:
        # sendto's address is its last argument; sendmsg's is optional: without one the peer was connected before.
        address = args[position] if len(args) > position and args else None
        if address is not None and _is_blocked(shown := shown_address(address)):
            if sys._getframe(1).f_code.co_name in _SOCKETPAIR:
                return original(sock, *args)
            raise blocked(shown, call)
        return original(sock, *args)

    return guarded


# Without Unix sockets (on Windows) the standard library makes a pair by connecting to itself.
_SOCKETPAIR = ("socketpair", "_fallback_socketpair")


def _guarded_lookup(original: Any, socket: Any) -> Any:
    @functools.wraps(original)
    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host and not _is_local(socket, host) and _is_blocked(shown := shown_address((host, port))):
            raise blocked(shown, "connect")
        return original(host, port, *args, **kwargs)

    return getaddrinfo


def _is_local(socket: Any, host: str | bytes) -> bool:
    """Say whether finding the address of `host` needs no look-up."""
    name = host.decode() if isinstance(host, bytes) else host
    if name == "localhost":
        return True
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, name.partition("%")[0])
            return True
    return False


def _is_blocked(address: str) -> bool:
    return bool(_blocks) and not _exempt.get() and not _blocks[-1].allows(address)


def shown_address(address: object) -> str:
    """Return a socket address as a person writes it: `host:port`, `[v6]:port`, or the path."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        host = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        return address.decode(errors="backslashreplace")
    return str(address)


def _no_network(call: str, **positions: int) -> Any:
    """Return a method that raises NetworkBlockedError; `positions` are those of the parameters with the address."""

    def refuse(_loop: object, *args: Any, **kwargs: Any) -> None:
        found = [kwargs.get(name, args[at] if at < len(args) else None) for name, at in positions.items()]
        address = tuple(found) if len(found) > 1 else found[0] if found else None
        known = any(part is not None for part in found)
        raise blocked(shown_address(address) if known else "a socket or pipe", call)

    return refuse


def _no_subprocess(_loop: object, *_args: Any, **_kwargs: Any) -> None:
    raise NotImplementedError(
        "the virtual-time loop runs no subprocess: call subprocess.run in asyncio.to_thread, or a fake"
    )


class NetworklessLoop:
    """The part of an asyncio event loop that opens connections: each raises `NetworkBlockedError`."""

    add_reader: Any = _no_network("add_reader")
    add_writer: Any = _no_network("add_writer")
    connect_accepted_socket: Any = _no_network("connect_accepted_socket")
    connect_read_pipe: Any = _no_network("connect_read_pipe")
    connect_write_pipe: Any = _no_network("connect_write_pipe")
    create_connection: Any = _no_network("connect", host=1, port=2)
    create_datagram_endpoint: Any = _no_network("sendto", remote_addr=2)
    create_server: Any = _no_network("listen", host=1, port=2)
    create_unix_connection: Any = _no_network("connect", path=1)
    create_unix_server: Any = _no_network("listen", path=1)
    getaddrinfo: Any = _no_network("connect", host=0, port=1)
    getnameinfo: Any = _no_network("getnameinfo", sockaddr=0)
    sendfile: Any = _no_network("sendfile")
    sock_accept: Any = _no_network("accept")
    sock_connect: Any = _no_network("connect", address=1)
    sock_recv: Any = _no_network("recv")
    sock_recv_into: Any = _no_network("recv_into")
    sock_recvfrom: Any = _no_network("recvfrom")
    sock_recvfrom_into: Any = _no_network("recvfrom_into")
    sock_sendall: Any = _no_network("sendall")
    sock_sendfile: Any = _no_network("sendfile")
    sock_sendto: Any = _no_network("sendto", address=2)
    start_tls: Any = _no_network("start_tls")
    subprocess_exec: Any = _no_subprocess
    subprocess_shell: Any = _no_subprocess

    def remove_reader(self, fd: object) -> bool:
        """Return False: there was none."""
        return False

    remove_writer = remove_reader
