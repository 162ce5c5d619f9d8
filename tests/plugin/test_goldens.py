"""Golden files: what they are called, what is in them, and that nothing but a differing text ever changes one."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_sagaz.goldens import golden_path, golden_text

if TYPE_CHECKING:
    from pathlib import Path

CONFTEST = """
import pytest

@pytest.fixture
def saga_golden(request):
    from pytest_sagaz.goldens import golden_fixture
    return golden_fixture(request)

@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    used = getattr(node, "workeroutput", {}).get("sagaz_goldens")
    if used is not None:
        from pytest_sagaz.goldens import add_worker_log
        add_worker_log(node.config, used)
"""

THREE = """
import os, pytest

@pytest.mark.parametrize("word", ["one", "two", "three"])
def test_word(word, saga_golden):
    assert f"{word}\\n" == saga_golden

def test_last(saga_golden):
    assert "last" == saga_golden
"""

THREE_FILES = {
    "test_m/test_last.saga": "last\n",
    "test_m/test_word[one].saga": "one\n",
    "test_m/test_word[three].saga": "three\n",
    "test_m/test_word[two].saga": "two\n",
}


ALONE = tuple(o for name in ("sagaz", "randomly", "hypothesispytest", "asyncio", "anyio") for o in ("-p", f"no:{name}"))


class Project:
    """A folder with tests, run by a pytest that has syrupy and our fixture."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makeconftest(CONFTEST)
        # syrupy warns of workers that update (6) or died (7), which as an error ends the run before what is tested
        pytester.makeini("[pytest]\nfilterwarnings =\n    error\n    ignore:syrupy\n")

    def write(self, source: str, module: str = "test_m") -> None:
        # a source of the same size in the same second would be run from the old byte code
        for stale in self.pytester.path.glob(f"__pycache__/{module}.*"):
            stale.unlink()
        self.pytester.path.joinpath(f"{module}.py").write_text(source, encoding="utf-8")

    apart = False
    """Run pytest in a process of its own, where a test ends or watches it; workers are processes in any case."""

    def run(self, *args: str) -> pytest.RunResult:
        runpytest = self.pytester.runpytest_subprocess if self.apart else self.pytester.runpytest_inprocess
        result = runpytest(*ALONE, *args)
        result.stdout.no_fnmatch_line("INTERNALERROR>*")
        return result

    def update(self, *args: str) -> pytest.RunResult:
        return self.run("--snapshot-update", *args)

    @property
    def folder(self) -> Path:
        return self.pytester.path / "__sagas__"

    def files(self) -> dict[str, str]:
        """Return every file of the folder, hidden ones too, with its text."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes().decode() for path in paths}


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("CI", "BUILD_NUMBER", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)


# -- writing and comparing --------------------------------------------------------------------------------------------


def test_a_golden_is_written_once_and_compared_from_then_on(project: Project) -> None:
    project.write(THREE)
    project.update().assert_outcomes(passed=4)
    assert project.files() == THREE_FILES
    project.run().assert_outcomes(passed=4)


def test_an_object_gives_its_text_itself(project: Project) -> None:
    project.write(
        """
class Outcome:
    def golden_text(self): return "reserve  do undo\\ncharge   do"

def test_it(saga_golden):
    assert Outcome() == saga_golden
    assert saga_golden == Outcome()
"""
    )
    project.update().assert_outcomes(passed=1)
    text = "reserve  do undo\ncharge   do\n"
    assert project.files() == {"test_m/test_it.saga": text, "test_m/test_it.1.saga": text}


@pytest.mark.parametrize("value", ["{'a': 1}", "None", "b'bytes'", "str", "type('O', (), {'golden_text': 3})()"])
def test_anything_else_is_a_type_error_of_one_line(project: Project, value: str) -> None:
    project.write(f"def test_it(saga_golden): assert {value} == saga_golden")
    result = project.update()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E  *TypeError: saga_golden compares an outcome * or a str, not *"])
    assert project.files() == {}


@pytest.mark.parametrize("ci", [False, True])
def test_a_missing_golden_fails_and_says_how_to_write_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, ci: bool
) -> None:
    if ci:
        monkeypatch.setenv("CI", "true")
    project.write(THREE)
    result = project.run("-k", "two")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(
        ["E  *there is no such golden file: write it with `pytest 'test_m.py::test_word[[]two]' --snapshot-update`"]
    )
    assert project.files() == {}


def test_the_command_in_the_message_works_from_the_folder_where_pytest_was_started(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project.pytester.mkdir("sub")
    folder.joinpath("test_s.py").write_text("def test_it(saga_golden): assert 'x' == saga_golden")
    monkeypatch.chdir(folder)
    result = project.run()
    result.stdout.fnmatch_lines(["*__sagas__/test_s/test_it.saga*", "*`pytest test_s.py::test_it --snapshot-update`"])


def test_a_differing_golden_fails_with_a_unified_diff(project: Project) -> None:
    project.write("def test_it(saga_golden): assert 'a\\nb\\nc\\n' == saga_golden")
    project.update()
    project.write("def test_it(saga_golden): assert 'a\\nB\\nc\\n' == saga_golden")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E  *[[]+ received] == [[]- __sagas__/test_m/test_it.saga]",
            "E  *the golden differs: if what was received is right, `pytest test_m.py::test_it --snapshot-update`",
            "E  *@@ -1,3 +1,3 @@",
            "E  * a",
            "E  *-b",
            "E  *+B",
            "E  * c",
        ]
    )
    assert project.files() == {"test_m/test_it.saga": "a\nb\nc\n"}
    project.update().assert_outcomes(passed=1)
    assert project.files() == {"test_m/test_it.saga": "a\nB\nc\n"}


def test_a_long_diff_is_shown_whole_in_a_section_of_the_report(project: Project) -> None:
    project.write("def test_it(saga_golden): assert '\\n'.join('abcdefghijklm') == saga_golden")
    project.update()
    project.write("def test_it(saga_golden): assert '\\n'.join('ABCDEFGHIJKLM') == saga_golden")
    result = project.run()
    result.stdout.fnmatch_lines(["*- Captured golden __sagas__/test_m/test_it.saga call -*", "-m", "+A", "+M"])
    result.stdout.fnmatch_lines(["*truncated*"])
    whole = project.run("-vv")
    whole.stdout.no_fnmatch_line("*Captured golden*")
    whole.stdout.fnmatch_lines(["E  *-m", "E  *+M"])


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("", "\n"),
        ("no end", "no end\n"),
        ("end\n", "end\n"),
        ("two ends\n\n", "two ends\n\n"),
        ("a\r\nb\rc\r\r\n", "a\nb\nc\n\n"),
        ("größe ✓\n", "größe ✓\n"),
        ("lone \udc80", "lone \\udc80\n"),
        ("page\x0cbreak\u2028line", "page\x0cbreak\u2028line\n"),
    ],
)
def test_a_text_has_newlines_only_and_ends_with_one(text: str, stored: str) -> None:
    assert golden_text(text) == stored


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_the_text_of_a_text_is_itself(text: str) -> None:
    assert golden_text(golden_text(text)) == golden_text(text)


def test_a_checkout_with_other_newlines_is_equal_and_left_alone(project: Project) -> None:
    project.write("def test_it(saga_golden): assert 'a\\nb\\n' == saga_golden")
    project.update()
    golden = project.folder / "test_m/test_it.saga"
    golden.write_bytes(b"a\r\nb\r\n")
    project.run().assert_outcomes(passed=1)
    project.update().assert_outcomes(passed=1)
    assert golden.read_bytes() == b"a\r\nb\r\n"


def test_a_golden_that_is_no_utf_8_differs_and_is_rewritten(project: Project) -> None:
    project.write("def test_it(saga_golden): assert 'gr\\xf6\\xdfe' == saga_golden")
    project.update()
    golden = project.folder / "test_m/test_it.saga"
    golden.write_bytes("größe\n".encode("latin-1"))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([r"E  *-gr\udcf6\udcdfe"])
    project.update().assert_outcomes(passed=1)
    assert golden.read_text(encoding="utf-8") == "größe\n"


def test_an_update_does_not_touch_an_equal_file(project: Project) -> None:
    project.write(THREE)
    project.update()
    paths = list(project.folder.rglob("*.saga"))
    for path in paths:
        os.utime(path, (1, 1))
    inodes = [path.stat().st_ino for path in paths]
    project.update().assert_outcomes(passed=4)
    assert [path.stat().st_mtime for path in paths] == [1] * 4
    assert [path.stat().st_ino for path in paths] == inodes


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_golden_has_the_mode_that_the_umask_gives(project: Project) -> None:
    project.write(THREE)
    umask = os.umask(0o022)
    try:
        project.update()
    finally:
        os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in project.folder.rglob("*.saga")} == {0o644}


def test_two_texts_under_one_name_are_an_error(project: Project) -> None:
    project.write(
        """
def test_same(saga_golden):
    assert "a" == saga_golden(name="x")
    assert "a" == saga_golden(name="x")

def test_other(saga_golden):
    assert "a" == saga_golden(name="x")
    assert "b" == saga_golden(name="x")
"""
    )
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E  *ValueError: saga_golden(name='x') was compared before in this test, with another*"]
    )
    assert project.files() == {"test_m/test_same[x].saga": "a\n", "test_m/test_other[x].saga": "a\n"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("saga_golden()", "takes a str that is not empty, not None"),
        ("saga_golden(name='')", "takes a str that is not empty, not ''"),
        ("saga_golden(name=3)", "takes a str that is not empty, not 3"),
        ("saga_golden(matcher=str)", "takes a name only, not matcher"),
        ("saga_golden.use_extension(None)", "has one format"),
    ],
)
def test_a_wrong_argument_is_a_type_error(project: Project, call: str, message: str) -> None:
    project.write(f"def test_it(saga_golden): assert 'a' == {call}")
    result = project.update()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E  *TypeError: saga_golden*{message}*"])


def test_a_class_that_answers_for_itself_is_told_apart_from_a_difference(project: Project) -> None:
    project.write(
        """
class Outcome:
    def __eq__(self, other): return False
    def golden_text(self): return "x"

def test_it(saga_golden): assert Outcome() == saga_golden
"""
    )
    project.run().stdout.fnmatch_lines(["E  *the other side's own __eq__ answered*"])


def test_only_new_goldens_are_written_where_syrupy_has_the_option(project: Project) -> None:
    project.write("def test_it(saga_golden): assert 'a' == saga_golden")
    result = project.run("--snapshot-update-new-only")
    if result.ret == pytest.ExitCode.USAGE_ERROR:
        pytest.skip("this syrupy has no --snapshot-update-new-only")
    result.assert_outcomes(passed=1)
    project.write("def test_it(saga_golden): assert 'b' == saga_golden")
    project.run("--snapshot-update-new-only").assert_outcomes(failed=1)
    assert project.files() == {"test_m/test_it.saga": "a\n"}


@pytest.mark.parametrize("option", [["-p", "no:syrupy"], ["--snapshot-dirname=__sagas__"], ["--snapshot-dirname=."]])
def test_a_run_that_would_lose_goldens_is_refused(project: Project, option: list[str]) -> None:
    project.write(THREE)
    project.update()
    result = project.run(*option)
    if result.ret == pytest.ExitCode.USAGE_ERROR:
        pytest.skip("this syrupy has no --snapshot-dirname")
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(["E  *UsageError: *"])
    assert project.files() == THREE_FILES


# -- what they are called ---------------------------------------------------------------------------------------------


def test_a_file_is_named_after_its_test(project: Project) -> None:
    project.write(
        """
import pytest

class TestRefund:
    class TestLate:
        def test_it(self, saga_golden): assert "1" == saga_golden

    @pytest.mark.parametrize("plan", ["charge#2@before+ship@late"])
    def test_plan(self, plan, saga_golden):
        assert "2" == saga_golden
        assert "3" == saga_golden(name="late")
        assert "4" == saga_golden
"""
    )
    project.update().assert_outcomes(passed=2)
    assert project.files() == {
        "test_m/TestRefund.TestLate.test_it.saga": "1\n",
        "test_m/TestRefund.test_plan[charge#2@before+ship@late].saga": "2\n",
        "test_m/TestRefund.test_plan[charge#2@before+ship@late][late].saga": "3\n",
        "test_m/TestRefund.test_plan[charge#2@before+ship@late].2.saga": "4\n",
    }


def test_an_id_never_leads_out_of_the_folder_nor_into_another_ones_file(project: Project) -> None:
    ids = [
        "../../x",
        "..",
        "/etc/x",
        "a/b",
        "a\\\\b",
        "a b",
        "a_b",
        "a:b",
        "A_b",
        "a_B",
        "",
        "a][b",
        "a]",
        "con",
        "é",
        "a.1",
    ]
    ids += ["x" * 300, "x" * 299 + "y", "x" * 301]
    project.write(
        f"""
import pytest

@pytest.mark.parametrize("text", {ids!r}, ids=lambda text: text)
def test_it(text, saga_golden):
    assert text == saga_golden
    assert text + "1" == saga_golden
    assert text + "n" == saga_golden(name=text or "-")
"""
    )
    project.update().assert_outcomes(passed=len(ids))
    project.run("-p", "no:cacheprovider").assert_outcomes(passed=len(ids))
    files = project.files()
    assert len({name.lower() for name in files}) == 3 * len(ids)
    assert all(re.fullmatch(r"test_m/test_it\[[A-Za-z0-9_.,\[\]-]*\.saga", name) for name in files)
    assert max(len(name) for name in files) <= len("test_m/") + 120 + len(".saga")
    assert files["test_m/test_it[a_b].saga"] == "a_b\n"
    outside = {path.name for path in project.pytester.path.iterdir()}
    assert outside <= {"conftest.py", "tox.ini", "test_m.py", "__sagas__", "__pycache__", ".pytest_cache"}


def test_names_that_differ_only_in_case_have_files_that_differ_otherwise(project: Project) -> None:
    project.write(
        """
def test_a(saga_golden): assert "1" == saga_golden
def test_A(saga_golden): assert "2" == saga_golden
def test_b(saga_golden): assert "3" == saga_golden
TEST_B = "no test"
class TestX:
    def test_it(self, saga_golden): assert "4" == saga_golden
class TestBase:
    def test_up(self, saga_golden): assert "5" == saga_golden
class Testx(TestBase):
    def test_Up(self, saga_golden): assert "6" == saga_golden
"""
    )
    project.update().assert_outcomes(passed=7)
    files = project.files()
    assert len({name.lower() for name in files}) == 7
    assert {"test_m/test_b.saga", "test_m/TestBase.test_up.saga"} <= files.keys()


def test_a_name_is_the_same_when_a_part_of_the_tests_is_collected(project: Project) -> None:
    project.write(
        "def test_a(saga_golden): assert '1' == saga_golden\ndef test_A(saga_golden): assert '2' == saga_golden"
    )
    project.update().assert_outcomes(passed=2)
    project.run("test_m.py::test_a").assert_outcomes(passed=1)
    project.run("test_m.py::test_A").assert_outcomes(passed=1)


def test_a_doctest_has_a_golden_too(project: Project) -> None:
    project.write(
        '"""\n>>> "text" == getfixture("saga_golden")\nTrue\n"""\ndef test_m(saga_golden): assert "x" == saga_golden'
    )
    project.update("--doctest-modules").assert_outcomes(passed=2)
    assert sorted(project.files().values()) == ["text\n", "x\n"]
    project.run("--doctest-modules").assert_outcomes(passed=2)


@pytest.fixture
def module(pytester: pytest.Pytester) -> pytest.Module:
    collected: pytest.Module = pytester.getmodulecol("def test_x(): pass", configargs=[*ALONE, "-p", "no:syrupy"])
    return collected


_words = st.text(alphabet="aA_]/[. é", max_size=4) | st.text(alphabet="ab", min_size=100, max_size=150)
_assertions = st.tuples(_words, st.integers(0, 2) | _words)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(one=_assertions, two=_assertions)
def test_two_assertions_never_share_a_file(
    module: pytest.Module, one: tuple[str, int | str], two: tuple[str, int | str]
) -> None:
    def path(identifier: str, index: int | str) -> str:
        name = f"test_x[{identifier}]"
        item = pytest.Function.from_parent(module, name=name, originalname="test_x", callobj=module.obj.test_x)
        return golden_path(item, index)

    assert {os.path.dirname(path(*each)) for each in (one, two)} == {
        str(module.path.parent / "__sagas__" / module.path.stem)
    }
    assert (path(*one).lower() == path(*two).lower()) == (one == two)


# -- nothing is lost --------------------------------------------------------------------------------------------------

ENDINGS = {
    "a failing test": ("def test_bad(): assert False", []),
    "-x": ("def test_bad(): assert False", ["-x"]),
    "an exception midway": ("def test_bad(): raise KeyboardInterrupt", []),
    "an exit": ("def test_bad(): pytest.exit('enough')", []),
    "a skipped rest": ("def test_bad(): pytest.skip()", []),
    "-k": ("", ["-k", "one"]),
    "--deselect": ("", ["--deselect", "test_m.py::test_word"]),
    "one test by its id": ("", ["test_m.py::test_last"]),
    "one file": ("", ["test_other.py"]),
    "--ignore": ("", ["--ignore", "test_m.py"]),
    "a module that cannot be imported": ("raise ImportError", []),
    "tests that are gone": ("del test_word", []),
    "a crashed worker": ("def test_bad(): os._exit(1)", ["-n", "2"]),
    "a killed worker": ("def test_bad(): os.kill(os.getpid(), 9)", ["-n", "2"]),
    "a crashed process": ("def test_bad(): os._exit(1)", []),
    "-x with workers": ("def test_bad(): assert False", ["-n", "2", "-x"]),
}


@pytest.mark.parametrize("fixture", ["saga_golden", "snapshot.use_extension"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_update_deletes_nothing(project: Project, ending: str, fixture: str) -> None:
    """Neither with our fixture, nor in syrupy's own session with our extension."""
    bad, options = ENDINGS[ending]
    if "killed" in ending and os.name == "nt":
        pytest.skip("no SIGKILL")
    source = THREE
    if fixture != "saga_golden":
        source = THREE.replace("saga_golden", "snapshot").replace("== snapshot", "== snapshot.use_extension(Golden)")
        source = f"from pytest_sagaz.goldens import GoldenExtension as Golden\n{source}"
    project.write(source)
    project.write("def test_other(): pass", "test_other")
    project.update().assert_outcomes(passed=5)
    assert project.files() == THREE_FILES
    head, rest = source.split("@pytest", 1)
    project.write(f"{head}{bad}\n@pytest{rest}" if "del" not in bad else f"{source}{bad}")
    project.apart = "KeyboardInterrupt" in bad or "os." in bad
    project.update(*options)
    assert project.files() == THREE_FILES


def test_last_failed_deletes_nothing(project: Project) -> None:
    project.write(THREE)
    project.update()
    project.write(THREE + "    assert 0\n")
    project.update().assert_outcomes(passed=3, failed=1)
    project.update("--lf").assert_outcomes(failed=1)
    assert project.files() == THREE_FILES


@pytest.mark.parametrize("bad", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_test_that_passed_before_the_worker_died_keeps_its_new_golden(project: Project, bad: str) -> None:
    if "kill" in bad and os.name == "nt":
        pytest.skip("no SIGKILL")
    project.write(f"{THREE}\ndef test_z(): {bad}")
    project.update("-n", "1", "--max-worker-restart=0")
    assert project.files() == THREE_FILES


def test_a_kill_in_the_middle_of_a_write_leaves_the_golden_whole(project: Project) -> None:
    if os.name == "nt":
        pytest.skip("no SIGKILL")
    project.write(THREE)
    project.update()
    project.write(
        THREE.replace('"last" ==', "'x' * 100_000 ==").replace(
            "def test_last(saga_golden):",
            "def test_last(saga_golden, monkeypatch):\n"
            "    monkeypatch.setattr(os, 'replace', lambda *paths: os.kill(os.getpid(), 9))",
        )
    )
    project.update("-n", "1", "--max-worker-restart=0")
    files = project.files()
    assert {name: text for name, text in files.items() if name.endswith(".saga")} == THREE_FILES
    assert len(files) == 5  # the text that was not put in place, under a hidden name
    project.write(THREE)
    project.run().assert_outcomes(passed=4)


def test_a_write_that_fails_leaves_nothing_behind_and_fails_the_test(project: Project) -> None:
    project.write(
        """
import os
def test_it(saga_golden, monkeypatch):
    def full(*paths): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    assert "a" == saga_golden
"""
    )
    result = project.update()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E  *OSError: [[]Errno 28] No space left on device"])
    assert project.files() == {}


@pytest.mark.parametrize(
    "options", [["-n", "2"], ["-n", "2", "--dist", "each"], ["-p", "randomly"], ["-p", "no:xdist"]], ids=" ".join
)
def test_goldens_work_in_any_order_and_with_workers(project: Project, options: list[str]) -> None:
    if options == ["-p", "randomly"]:
        pytest.importorskip("pytest_randomly")
        options = ["-p", "pytest_randomly"]
    copies = 2 if "each" in options else 1
    project.write(THREE)
    project.run(*options).assert_outcomes(failed=4 * copies)
    project.update(*options).assert_outcomes(passed=4 * copies)
    assert project.files() == THREE_FILES
    project.run(*options).assert_outcomes(passed=4 * copies)


# -- what it costs ----------------------------------------------------------------------------------------------------

COUNTING = """
import json, os, sys
from collections import Counter

_operations = Counter()

_watched = {"open", "os.rename", "os.mkdir", "os.remove", "os.listdir", "os.scandir"}

def _count(event, args):
    if event in _watched and "__sagas__" in str(args[0]):
        _operations[event] += 1

sys.addaudithook(_count)

def pytest_unconfigure():
    with open("operations.json", "w") as file:
        json.dump(_operations, file)
"""


@pytest.mark.parametrize("shape", ["parameters", "functions", "modules", "asserts"])
@pytest.mark.parametrize("count", [5, 40])
def test_an_assertion_costs_one_read_and_an_update_one_write(project: Project, shape: str, count: int) -> None:
    """Operations on files below `__sagas__`, as Python's audit events count them; no folder is ever listed."""
    project.apart = True
    project.pytester.makeconftest(CONFTEST + COUNTING)
    modules = 1
    if shape == "parameters":
        project.write(
            f"import pytest\n@pytest.mark.parametrize('i', range({count}))\n"
            f"def test_it(i, saga_golden): assert f'{{i}}' == saga_golden"
        )
    elif shape == "functions":
        project.write("\n".join(f"def test_{i}(saga_golden): assert '{i}' == saga_golden" for i in range(count)))
    elif shape == "asserts":
        project.write(f"def test_it(saga_golden):\n    for i in range({count}): assert f'{{i}}' == saga_golden")
    else:
        modules = count
        for i in range(count):
            project.write(f"def test_it(saga_golden): assert '{i}' == saga_golden", f"test_{i}")

    def operations(*options: str) -> dict[str, int]:
        files = sorted(path.name for path in project.pytester.path.glob("test_*.py"))  # pytest lists a folder's folders
        result = project.run("-p", "no:cacheprovider", *files, *options)
        assert result.ret == 0
        return dict(json.loads(project.pytester.path.joinpath("operations.json").read_text()))

    # a golden that is not there yet: a read that finds nothing, and a write; a module's first one also makes the folder
    assert operations("--snapshot-update") == {
        "open": 2 * count + modules,
        "os.mkdir": modules + 1,
        "os.rename": count,
    }
    assert operations() == {"open": count}
    assert operations("--snapshot-update") == {"open": count}


def test_the_module_is_imported_only_for_a_test_that_uses_the_fixture(project: Project) -> None:
    project.apart = True
    project.write("import sys\ndef test_it(): assert 'pytest_sagaz.goldens' not in sys.modules")
    project.run().assert_outcomes(passed=1)


# -- beside syrupy's own snapshots ------------------------------------------------------------------------------------

BOTH = """
def test_both(snapshot, saga_golden):
    assert {"a": 1} == snapshot
    assert "text" == saga_golden
    assert [2] == snapshot
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_syrupys_own_snapshots_are_as_without_us(project: Project, workers: list[str]) -> None:
    """The same counts, deletions, files and exit codes, while snapshots are written, compared, unused and deleted."""

    def report(result: pytest.RunResult) -> tuple[int, list[str]]:
        _, _, told = result.stdout.str().partition("snapshot report summary")
        return int(result.ret), [line for line in told.splitlines()[1:] if line and not line.startswith("=")]

    def story(source: str) -> list[Any]:
        told: list[Any] = []
        for asserted in ("[2] == snapshot", "True", "[2] == snapshot"):
            project.write(source.replace("[2] == snapshot", asserted))
            for options in [["--snapshot-update"]] if workers else [[], ["--snapshot-details"], ["--snapshot-update"]]:
                told.append(report(project.run("-p", "no:cacheprovider", "--tb=no", *options, *workers)))
                told.append([(path.name, path.read_text()) for path in project.pytester.path.glob("__snapshots__/*")])
        for path in project.pytester.path.glob("__snapshots__/*"):
            path.unlink()
        return told

    project.folder.joinpath("test_m").mkdir(parents=True)
    project.folder.joinpath("test_m/test_both.saga").write_text("text\n")
    project.folder.joinpath("test_m/test_gone.saga").write_text("old\n")
    without = story(BOTH.replace(", saga_golden", "").replace('    assert "text" == saga_golden\n', ""))
    assert story(BOTH) == without
    assert workers or "1 unused snapshot deleted" in str(without)
    assert project.files() == {"test_m/test_both.saga": "text\n", "test_m/test_gone.saga": "old\n"}


# -- goldens that no test uses ----------------------------------------------------------------------------------------

NOTE = "golden files that no test uses: "


def _note(result: pytest.RunResult) -> list[str]:
    return [line.removeprefix(NOTE) for line in result.outlines if line.startswith(NOTE)]


@pytest.fixture
def orphans(project: Project) -> Project:
    """A project with four goldens in use and three that are not: of a test, and of a module, that were removed."""
    project.write(THREE)
    project.write("def test_it(): pass", "test_plain")
    project.update()
    for name in ("test_m/test_gone.saga", "test_m/test_last.1.saga", "test_gone/test_it.saga"):
        path = project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("old\n")
    return project


@pytest.mark.parametrize("options", [[], ["--snapshot-update"], ["-n", "2"], ["-v"]], ids=" ".join)
def test_a_whole_run_names_the_goldens_that_no_test_uses(orphans: Project, options: list[str]) -> None:
    before = orphans.files()
    result = orphans.run(*options)
    assert result.ret == 0
    assert _note(result) == [
        "__sagas__/test_gone/test_it.saga, __sagas__/test_m/test_gone.saga, __sagas__/test_m/test_last.1.saga"
    ]
    assert orphans.files() == before


@pytest.mark.parametrize(
    "options",
    [["-q"], ["-k", "test"], ["."], ["test_m.py"], ["--deselect", "test_m.py::test_last"], ["-n", "2", "-k", "word"]],
    ids=" ".join,
)
def test_a_part_of_the_tests_says_nothing_of_unused_goldens(orphans: Project, options: list[str]) -> None:
    result = orphans.run(*options)
    assert (result.ret, _note(result)) == (0, [])


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    "addition",
    [
        "def test_new(): assert 0",
        "def test_new(): pytest.skip()",
        "@pytest.mark.xfail\ndef test_new(saga_golden): assert 'unwritten' == saga_golden",
    ],
)
def test_a_module_that_did_not_pass_wholly_has_no_unused_goldens(
    orphans: Project, addition: str, workers: list[str]
) -> None:
    orphans.write(f"{THREE}\n{addition}\n")
    expected = [] if "assert 0" in addition else ["__sagas__/test_gone/test_it.saga"]
    assert _note(orphans.run(*workers)) == expected


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_module_that_is_there_but_did_not_run_has_no_unused_goldens(orphans: Project, workers: list[str]) -> None:
    orphans.write("import pytest\npytest.skip(allow_module_level=True)", "test_gone")
    assert _note(orphans.run(*workers)) == ["__sagas__/test_m/test_gone.saga, __sagas__/test_m/test_last.1.saga"]
    orphans.write("def test_it(): assert 0", "test_gone")
    assert _note(orphans.run("--ignore", "test_gone.py", *workers)) == [
        "__sagas__/test_m/test_gone.saga, __sagas__/test_m/test_last.1.saga"
    ]


def test_a_long_list_of_unused_goldens_is_cut(orphans: Project) -> None:
    for i in range(10):
        orphans.folder.joinpath(f"test_m/test_a{i}.saga").write_text("old\n")
    [note] = _note(orphans.run())
    assert note.endswith(" and 8 more")
    assert note.count(",") == 4
