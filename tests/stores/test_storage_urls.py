"""Which store a URL names, and what is said when it names none."""

import pytest

from sagaz_core.errors import MissingExtraError, UsageError
from sagaz_core.storage import InMemorySnapshotStorage, open_storage, safe_url
from sagaz_core.storage.sqlite import SqliteSnapshotStorage
from sagaz_core.storage.url import storage_openers


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////tmp/sagaz.db", "/tmp/sagaz.db"),
        ("SQLite:////tmp/sagaz.db", "/tmp/sagaz.db"),
        ("sqlite:////tmp/with%20space%3F.db?busy_timeout=0.5", "/tmp/with space?.db"),
        ("sqlite:////tmp/a:b@c#d.db", "/tmp/a:b@c#d.db"),
        ("sqlite:////tmp/../x.db", "/x.db"),
    ],
)
def test_an_absolute_path(url, path):
    storage = open_storage(url)
    assert isinstance(storage, SqliteSnapshotStorage)
    assert storage.path == path
    assert open_storage(storage.url).path == path


def test_a_relative_path_is_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("sqlite:///.sagaz/sagaz.db").path == str(tmp_path / ".sagaz" / "sagaz.db")
    assert list(tmp_path.iterdir()) == []


def test_a_windows_path_keeps_its_drive(monkeypatch):
    import ntpath
    from pathlib import PureWindowsPath

    monkeypatch.setattr("sagaz_core.storage.sqlite.os.path.abspath", ntpath.normpath)
    monkeypatch.setattr("sagaz_core.storage.sqlite.Path", PureWindowsPath)
    storage = open_storage("sqlite:///C:/data/sagaz.db")
    assert storage.path == r"C:\data\sagaz.db"
    assert storage.url == "sqlite:///C:/data/sagaz.db"


def test_the_busy_timeout():
    assert open_storage("sqlite:///x.db")._connections._busy_timeout == 5
    assert open_storage("sqlite:///x.db?busy_timeout=0.25")._connections._busy_timeout == 0.25


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "'' is not a storage URL: write scheme://…, such as sqlite:///path/to/file.db or memory://"),
        ("sagaz.db", "'sagaz.db' is not a storage URL"),
        ("sqlite:x.db", "is not a storage URL"),
        ("://x", "is not a storage URL"),
        ("sqlite://", "'sqlite://' has a host, or too few slashes: write sqlite:///relative.db"),
        ("sqlite://x.db", "has a host, or too few slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:////", "names no file"),
        ("sqlite:///:memory:", "for a store in memory, write memory://"),
        ("sqlite:///a%00b", "has a NUL"),
        ("sqlite:///x?busy=5", "unknown option 'busy' (did you mean 'busy_timeout'?)"),
        ("sqlite:///x?busy_timeout=", "gives busy_timeout as ''"),
        ("sqlite:///x?busy_timeout=soon", "give seconds, such as busy_timeout=5"),
        ("sqlite:///x?busy_timeout=-1", "busy_timeout=-1.0 is not a time"),
        ("sqlite:///x?busy_timeout=nan", "busy_timeout=nan is not a time"),
        ("sqlit:///x", "unknown scheme (did you mean 'sqlite'?); known: "),
        ("quux:///x", "unknown scheme; known: "),
        ("memory://" + "x" * 256, "give a text of 1 to 255 characters"),
    ],
)
def test_a_url_that_names_no_store(url, message):
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 3, b"memory://"])
def test_what_is_no_text_is_no_url(url):
    with pytest.raises(UsageError, match="is not a storage URL"):
        open_storage(url)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("postgresql://user:PSSWD@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("redis://:PSSWD@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://:PS/SWD@host", "redis://:***@host"),
        ("redis://:PS?SWD@host", "redis://:***@host"),
        ("redis://:PS@SWD#@host/0?x=1", "redis://:***@host/0?x=1"),
        ("redis://:PS://SWD@host", "redis://:***@host"),
        ("postgresql://host/db?user=u&password=PSSWD&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("postgresql://host/db?sslpassword=PSSWD", "postgresql://host/db?sslpassword=***"),
        ("s3://bucket/prefix?AWS_Secret_Access_Key=PSSWD&region=x", None),
        ("s3://bucket/p?token=PSSWD", "s3://bucket/p?token=***"),
        ("s3://bucket/p?X-Amz-Signature=PSSWD", "s3://bucket/p?X-Amz-Signature=***"),
        ("sqlite:////folder/a:b@c.db", "sqlite:////folder/a:b@c.db"),
        ("user:PSSWD@host", "user:***@host"),
        ("memory://name", "memory://name"),
        ("", ""),
    ],
)
def test_a_secret_is_never_shown(url, safe):
    assert "PSSWD" not in safe_url(url)
    assert "SWD" not in safe_url(url)
    assert safe is None or safe_url(url) == safe
    said = ""
    try:
        open_storage(url)
    except (UsageError, MissingExtraError) as error:
        said = str(error)
    assert "SWD" not in said


def test_a_plugin_brings_a_scheme(plugins):
    class Plugin:
        @plugins.hookimpl
        def sagaz_storages(self):
            return {"mine": lambda url: InMemorySnapshotStorage(url)}

    plugins.manager.register(Plugin(), "mine")
    assert open_storage("mine://x").url == "mine://x"
    assert {"memory", "mine", "sqlite"} <= storage_openers().keys()


def test_a_plugin_replaces_a_scheme_of_ours(plugins):
    class Plugin:
        @plugins.hookimpl
        def sagaz_storages(self):
            return {"sqlite": lambda url: InMemorySnapshotStorage(url)}

    plugins.manager.register(Plugin(), "mine")
    assert isinstance(open_storage("sqlite:///x"), InMemorySnapshotStorage)


def test_two_plugins_with_one_scheme_are_named(plugins):
    class Plugin:
        @plugins.hookimpl
        def sagaz_storages(self):
            return {"mine": InMemorySnapshotStorage}

    plugins.manager.register(Plugin(), "one")
    plugins.manager.register(Plugin(), "two")
    with pytest.raises(UsageError, match="the sagaz plugins 'one' and 'two' both bring mine:// stores"):
        open_storage("mine://x")


def test_a_plugin_that_fails_is_named(plugins):
    class Plugin:
        @plugins.hookimpl
        def sagaz_storages(self):
            raise RuntimeError("no\nidea")

    plugins.manager.register(Plugin(), "broken")
    with pytest.raises(UsageError) as caught:
        open_storage("memory://")
    assert "the sagaz plugin 'broken' failed (RuntimeError: no idea)" in str(caught.value)
