"""The names of `sagaz_core`, loaded when they are used."""

from __future__ import annotations

import subprocess
import sys

import sagaz_core


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_public_name_is_there() -> None:
    for name in sagaz_core.__all__:
        assert getattr(sagaz_core, name) is not None
    assert sorted(sagaz_core.__all__) == sagaz_core.__all__


def test_a_name_is_never_shadowed_by_a_module() -> None:
    code = (
        "import pkgutil, types, sagaz_core\n"
        "for module in pkgutil.walk_packages(sagaz_core.__path__, 'sagaz_core.'):\n"
        "    if not module.name.endswith('__main__'): __import__(module.name)\n"
        "print([n for n in sagaz_core.__all__ if isinstance(getattr(sagaz_core, n), types.ModuleType)])\n"
    )
    assert in_a_new_process(code) == "[]"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, sagaz_core\n"
        "from sagaz_core import open_storage, SagaStatus, action\n"
        "heavy = {'asyncio', 'pydantic', 'ormsgpack', 'zstandard', 'sqlite3', 'rich', 'click', 'pytest', 'sagaz'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert in_a_new_process(code) == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(sagaz_core, "explorer_of_worlds")
