"""Plugins of other distributions: real ones, installed into a folder as pip does."""

import subprocess
import sys

import pytest


@pytest.fixture
def install(tmp_path):
    """Install a distribution with one module and one entry point."""

    def install(name, code):
        (tmp_path / f"{name}_plugin.py").write_text(code)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[sagaz]\n{name}-ep = {name}_plugin\n")

    return install


@pytest.fixture
def run(tmp_path):
    def run(code):
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


OPEN = "from sagaz_core.storage import open_storage; print(open_storage('mine://x').url)"
REPORT = f"from sagaz_core.errors import UsageError\ntry:\n    {OPEN}\nexcept UsageError as error:\n    print(error)"


def test_an_installed_plugin_brings_its_store(install, run):
    install(
        "good",
        "from sagaz_core.hookspecs import hookimpl\n"
        "from sagaz_core.storage import InMemorySnapshotStorage\n"
        "@hookimpl\ndef sagaz_storages():\n    return {'mine': InMemorySnapshotStorage}\n",
    )
    done = run(OPEN)
    assert (done.stdout, done.stderr) == ("mine://x\n", "")


def test_plugins_are_loaded_at_first_need(install, run):
    install("loud", "print('loaded')\n")
    done = run("import sagaz_core.storage, sagaz_core.plugins; print('imported')\nsagaz_core.plugins.plugin_manager()")
    assert (done.stdout, done.stderr) == ("imported\nloaded\n", "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no\\nidea')\n", "(RuntimeError: no idea)"),
        ("import a_module_that_is_not_there\n", "(ModuleNotFoundError: No module named 'a_module_that_is_not_there')"),
        ("this is no Python\n", "(SyntaxError:"),
        (
            "from sagaz_core.hookspecs import hookimpl\n@hookimpl\ndef sagaz_storages(unknown):\n    return {}\n",
            "(PluginValidationError:",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_in_one_line(install, run, code, reason):
    install("broken", code)
    done = run(REPORT)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("the sagaz plugin 'broken-ep' of broken 1.2 cannot be loaded")
    assert reason in done.stdout


def test_a_hook_that_is_misspelled_is_named(install, run):
    install("typo", "from sagaz_core.hookspecs import hookimpl\n@hookimpl\ndef sagaz_storage():\n    return {}\n")
    done = run(REPORT)
    assert done.stderr == ""
    assert "'typo-ep'" in done.stdout
    assert "sagaz_storage" in done.stdout


def test_our_own_parts_are_registered(plugins):
    assert [[adapter.name for adapter in group] for group in plugins.manager.hook.sagaz_adapters()] == [
        ["native", "sagaz"]
    ]
    (schemes,) = plugins.manager.hook.sagaz_storages()
    assert schemes.keys() >= {"memory", "postgresql", "sqlite"}
    assert plugins.manager.hook.sagaz_key_providers() == []
    assert plugins.manager.hook.sagaz_monitors() == []
