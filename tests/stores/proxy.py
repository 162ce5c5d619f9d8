"""A TCP proxy that counts round trips, and can be cut or stalled."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Passes on what comes to `port` of 127.0.0.1 to the server of a URL.

    `trips` counts how often a client began to speak after the server had, `answered` the bytes of answers.
    `cut_after(n)` closes a connection when the server's n-th answer from now on would be passed on: what it was asked
    is done, and nobody is told. `stalled` holds everything back. `refusing` closes each connection at once.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = parts._replace(
            netloc=parts.netloc.rpartition("@")[0] + "@" * ("@" in parts.netloc) + self.host
        ).geturl()
        self.trips = self.answered = 0
        self.refusing = False
        self.stalled = False
        self._cut_in = 0
        self._closed = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut_after(self, answers: int = 1) -> None:
        self._cut_in = answers

    def cut_all(self) -> None:
        for one in list(self._open):
            _close(one)

    def close(self) -> None:
        self._closed = True
        _close(self._listener)
        self.cut_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _close(client)
                continue
            try:
                server = socket.create_connection(self._server)
            except OSError:
                _close(client)
                continue
            self._open |= {client, server}
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        server_spoke = True
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            while client.fileno() >= 0 and server.fileno() >= 0:
                for key, _ in selector.select(timeout=0.05):
                    data = key.fileobj.recv(1 << 16)
                    while self.stalled:
                        if self._closed:
                            return
                        threading.Event().wait(0.01)
                    if not data:
                        raise OSError("one side has ended")
                    if key.fileobj is client:
                        self.trips += server_spoke
                        server_spoke = False
                        server.sendall(data)
                        continue
                    if self._cut_in and not server_spoke:
                        self._cut_in -= 1
                        if not self._cut_in:
                            raise OSError("cut")
                    server_spoke = True
                    self.answered += len(data)
                    client.sendall(data)
        self._open -= {client, server}
        _close(client)
        _close(server)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
