"""Every page of the documentation and the README is run."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from sagaz_core.cli.app import COMMANDS
from tests import servers
from tests.docs.pages import blocks, run_page

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
SERVERS = {
    "postgresql": ("postgresql://localhost/shop", servers.postgres_database),
    "redis": ("redis://localhost:6379/0", servers.redis_server),
}
"""The pages that need a server: the URL that they show, and what gives that of a real one."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_happens(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from sagaz import" in page.read_text(encoding="utf-8"):
        pytest.importorskip("sagaz")
    _prepare(tmp_path, monkeypatch)
    if page.stem not in SERVERS:
        run_page(page, tmp_path)
        return
    shown, server = SERVERS[page.stem]
    with server() as url:
        copy = tmp_path / page.name
        copy.write_text(page.read_text(encoding="utf-8").replace(shown, url), encoding="utf-8")
        run_page(copy, tmp_path)


def test_the_readme_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sagaz")
    _prepare(tmp_path, monkeypatch)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    # What makes an environment is tried by the checks; here the commands run in the one that there is.
    text = re.sub(r"^python3 -m venv .*?&& pip install -q \. && ", "", text, flags=re.M)
    text = re.sub(r"^python3 -m venv .*\"\.\[test\]\".*\n", "true\n", text, flags=re.M)
    page = tmp_path / "README.md"
    page.write_text(text, encoding="utf-8")
    run_page(page, tmp_path)


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *PAGES):
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name} links to {path}"
            assert not anchor or anchor in _anchors(target), f"{page.name} links to {path}#{anchor}"


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"docs/{page.name}" not in readme] == []


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_every_command_of_ours_is_named_where_the_other_package_is(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.search(r"Ours answers (.+?), and hands any other word to theirs", text, flags=re.S)
    assert named is not None
    assert re.findall(r"`(\w+)`", named[1]) == sorted(COMMANDS)


def test_pages_have_blocks_that_run() -> None:
    assert sum(block.note != "not run" for page in PAGES for block in blocks(page)) > 20


def _prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name == "examples" or name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)
