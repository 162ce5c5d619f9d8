"""URLs of the network stores, and what opening one costs."""

import subprocess
import sys

import pytest

from sagaz_core.errors import MissingExtraError, UsageError
from sagaz_core.storage import open_storage

LOADED = """
import sys
import sagaz_core
from sagaz_core.storage import open_storage
open_storage("sqlite:///x.db")
print(*sorted({"asyncpg", "redis", "hiredis"} & sys.modules.keys()))
"""


def test_other_stores_load_no_driver():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("scheme", "driver", "message"),
    [
        ("redis", "redis", "Redis snapshots need the redis extra: pip install 'pytest-sagaz[redis]'"),
        ("redis", "hiredis", "Redis snapshots need the redis extra: pip install 'pytest-sagaz[redis]'"),
        ("rediss", "redis", "Redis snapshots need the redis extra: pip install 'pytest-sagaz[redis]'"),
        ("postgresql", "asyncpg", "PostgreSQL snapshots need the postgres extra: pip install 'pytest-sagaz[postgres]'"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(scheme, driver, message, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == driver]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("redis", "postgres", "_redis_connections", "_postgres_connections"):
        monkeypatch.delitem(sys.modules, f"sagaz_core.storage.{name}", raising=False)
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(MissingExtraError) as caught:
        open_storage(f"{scheme}://localhost/0")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "redis://host/0?poolsize=5",
            "unknown option 'poolsize' (did you mean 'pool_size'?); known: 'timeout', 'pool_size'",
        ),
        ("redis://host/0?timeout=soon", "gives timeout as 'soon': give seconds, such as timeout=5"),
        ("redis://host/0?timeout=0", "gives timeout as '0': give seconds"),
        ("redis://host/0?timeout=1e30", "gives timeout as '1e30': give seconds"),
        ("redis://host/0?ssl_cert_reqs=none", "gives ssl_cert_reqs, but no TLS: write rediss://"),
        ("rediss://host/0?ssl_keyfile=key.pem", "gives ssl_keyfile, but no ssl_certfile: give the certificate"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "gives ssl_cert_reqs as 'maybe': give required, optional or none"),
        ("rediss://host/0?ssl_min_version=TLSv1_2", "gives ssl_min_version as 'TLSv1_2': give 771 or 772"),
        ("redis://host/0?protocol=9", "gives protocol as '9': give 2 or 3"),
        ("redis://host?db=first", "gives db as 'first': give a number from 0 on"),
        ("redis://host/0?pool_size=0", "gives pool_size as '0': give a number from 1 on"),
        ("redis://host/0?prefix=a*", "is not a prefix: give 1 to 100 letters"),
        ("redis://host/name", "names no database: give its number, such as redis://host/0"),
        ("redis:///var/run/redis.sock", "names no database: give its number, such as redis://localhost/0"),
        ("redis://host:port/0", "its host or port cannot be read"),
        ("redis://host:1,other:2/0", "its host or port cannot be read"),
        ("redis://host/0#x", "it has a #; percent-encode special characters"),
        ("postgresql://host/db?pool_size=many", "gives pool_size as 'many'"),
        ("postgresql://host/db?schema=a-b", "'a-b' is not a schema: give a name of letters, digits and _"),
        ("postgresql://host/db?schema=" + "%C3%BC" * 32, "letters, digits and _, of at most 63 bytes"),
        ("postgresql://host/db?prepared=maybe", "gives prepared as 'maybe': give yes or no"),
        ("postgresql://host/db?sslmod=require", "unknown option 'sslmod' (did you mean 'sslmode'?)"),
        (
            "postgresql://host/db?sslmode=maybe",
            "gives sslmode as 'maybe': give disable, allow, prefer, require, verify-",
        ),
        ("postgresql://host/db?target_session_attrs=primry", "gives target_session_attrs as 'primry': give any, pri"),
        ("postgresql://host/db?port=5432,x", "gives port as 'x': give a number from 1 on"),
        ("postgresql://host:5432,other:port/db", "its host or port cannot be read"),
        ("postgresql://host:5432,/db", "its host or port cannot be read"),
        ("postgresql://,host/db", "its host or port cannot be read"),
        ("postgresql://host:port/db", "its host or port cannot be read"),
        ("postgres://host/db", "unknown scheme (did you mean 'postgresql'?)"),
    ],
)
def test_a_url_that_is_wrong_says_how(url, message):
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_the_driver_reach_it():
    url = "postgresql://user:pw@host:5433/db?sslmode=require&timeout=3&pool_size=7&schema=other"
    storage = open_storage(url)
    assert storage.url == url
    assert storage._connections._dsn == "postgresql://user:pw@host:5433/db?sslmode=require"
    assert storage._connections.timeout == 3
    storage = open_storage("rediss://:pw@host/2?ssl_cert_reqs=required&prefix=shop&timeout=3")
    assert storage._connections._server == "rediss://:pw@host/2?ssl_cert_reqs=required"
    assert storage._keys.prefix == b"shop:"


@pytest.mark.parametrize(
    "url",
    [
        *("rediss://h/0?ssl_ca_certs=", "rediss://h/0?ssl_ca_path=", "rediss://h/0?ssl_certfile="),
        *(
            f"rediss://h/0?ssl_certfile={__file__}&ssl_keyfile=",
            "postgresql://h/db?sslrootcert=",
            "postgresql://h/db?sslcert=",
        ),
        *("postgresql://h/db?sslkey=", "postgresql://h/db?sslcrl="),
    ],
)
def test_a_file_of_a_certificate_that_is_not_there_is_told_at_once(url, tmp_path):
    (tmp_path / "there.pem").touch()
    open_storage(f"{url}{tmp_path}/there.pem")
    name = url.replace("&", "?").rpartition("?")[2].rstrip("=")
    for missing, why in (("none.pem", "No such file or directory"), ("a%00b", "it has a NUL")):
        with pytest.raises(UsageError, match=rf"gives {name} as '.*', which cannot be read: {why}$"):
            open_storage(f"{url}{tmp_path}/{missing}")


def test_a_folder_of_certificates_is_one():
    open_storage("rediss://h/0?ssl_ca_path=.")
