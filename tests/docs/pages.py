"""Runs a page of documentation: what it shows is what happens.

a block with a first line `# file: NAME`       is written to that file (python, ini, toml)
```python below `<!-- in NAME -->`             is added to that file, or begins it
```python                                      is executed, all blocks of a page in one namespace
```diff with a first line `--- NAME`           changes that file, in which its ` ` and `-` lines must be; `@@` is
                                               between places that are apart
```sh                                          is run by bash; it must succeed, or end as `<!-- exit N -->` above says
```text below `<!-- output -->`                must be in the output of the commands before, line by line, in order;
                                               `...` stands for any lines, and for anything within a line
```text below `<!-- whole output -->`          is exactly the output of the commands before
any of them below `<!-- not run -->`           is only shown
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = re.compile(r"(?:^<!-- (?P<note>[^>]*?) -->\n)?^```(?P<kind>[a-z]+)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    kind: str
    body: str
    note: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        yield Block(match["kind"], match["body"], match["note"] or "", text[: match.start()].count("\n") + 1)


def run_page(page: Path, folder: Path) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    output = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.note == "not run":
            continue
        if block.body.startswith("# file: "):
            target = folder / block.body.splitlines()[0].removeprefix("# file: ").strip()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.body, encoding="utf-8")
        elif block.note.startswith("in "):
            with (folder / block.note.removeprefix("in ")).open("a", encoding="utf-8") as target_file:
                target_file.write(block.body)
        elif block.kind == "diff":
            _apply(block, folder, where)
        elif block.kind == "python":
            exec(compile(block.body, where, "exec", dont_inherit=True), namespace)
        elif block.kind == "sh":
            output = _shell(block, folder, where)
        elif block.kind == "text" and block.note == "output":
            _compare(block.body, output, where)
        elif block.kind == "text" and block.note == "whole output":
            assert output.splitlines() == block.body.splitlines(), f"{where}: what was printed is\n{output}"


def _apply(block: Block, folder: Path, where: str) -> None:
    name, _, changes = block.body.partition("\n")
    target = folder / name.removeprefix("--- ")
    text = target.read_text(encoding="utf-8")
    for hunk in re.split(r"^@@.*\n", changes, flags=re.M):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] or line for line in lines if not line.startswith("+"))
        after = "".join(line[1:] or line for line in lines if not line.startswith("-"))
        assert before, f"{where}: a place is found by lines that are there"
        assert text.count(before) == 1, f"{where}: {target.name} has {text.count(before)} times\n{before}"
        text = text.replace(before, after)
    target.write_text(text, encoding="utf-8")


def _shell(block: Block, folder: Path, where: str) -> str:
    expected = int(block.note.removeprefix("exit ")) if block.note.startswith("exit ") else 0
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SAGAZ_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
        # Without what other tests want: that alone takes most of the time that a small run has.
        "PYTEST_ADDOPTS": "-p no:asyncio -p no:hypothesispytest -p no:randomly -p no:valkey",
    }
    # What changes what pytest prints, and what makes every one of these many processes compile all that it imports.
    for name in ("BUILD_NUMBER", "CI", "FORCE_COLOR", "PY_COLORS", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", "-c", block.body],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == expected, f"{where}: exit {done.returncode}, not {expected}\n{done.stdout}"
    return done.stdout


def _compare(expected: str, output: str, where: str) -> None:
    lines = iter(output.splitlines())
    for wanted in expected.splitlines():
        if not wanted.strip() or wanted.strip() == "...":
            continue
        pattern = re.escape(wanted.rstrip()).replace(r"\.\.\.", ".*")
        assert any(re.fullmatch(pattern, line.rstrip()) for line in lines), f"{where}: no line {wanted!r} in\n{output}"
