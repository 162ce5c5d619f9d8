"""Text for people: printable whatever it is made of, coloured only on a terminal, secrets hidden."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click


def printable(text: str) -> str:
    """Return the text on one line: line ends, escape sequences and the like are shown, not obeyed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say_error(message: str) -> None:
    """Write the one line of a failure to stderr."""
    line = printable(" ".join(message.split()) if "\n" in message else message)
    with contextlib.suppress(OSError):  # nobody reads it; the exit code says it too
        click.echo(f"sagaz: {line}", err=True)


def drop_output() -> None:
    """Let what is still written to stdout vanish: nobody reads it, and the interpreter would complain at its end."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def coloured() -> bool:
    """Whether stdout takes colours: a terminal, and nobody asked for none (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout is not None and sys.stdout.isatty()


def style(text: str, **how: Any) -> str:
    """Return the text in colour, where there are colours."""
    return click.style(text, **how) if coloured() else text


def show(value: Any, key: object = "", *, secrets: bool = False) -> str:
    """Return a value's text on one line. What stands under a key that sounds secret is `***` unless `secrets`."""
    from sagaz_core.prove.normalise import SECRET

    if not secrets and isinstance(key, str) and SECRET.search(key):
        return "***"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {show(v, k, secrets=secrets)}" for k, v in value.items()) + "}"
    kind = type(value)
    if hasattr(kind, "_fields") and isinstance(value, tuple):
        return _object(kind.__name__, zip(kind._fields, value, strict=False), secrets)
    if kind in (list, tuple):
        inner = ", ".join(show(item, secrets=secrets) for item in value)
        return f"[{inner}]" if kind is list else f"({inner}{',' if len(value) == 1 else ''})"
    if kind in (set, frozenset):
        return "{" + ", ".join(sorted(show(item, secrets=secrets) for item in value)) + "}"
    fields = _fields_of(value)
    return printable(repr(value)) if fields is None else _object(_name_of(value), fields.items(), secrets)


def _object(name: str, fields: Iterable[tuple[str, Any]], secrets: bool) -> str:
    return f"{name}({', '.join(f'{printable(str(k))}={show(v, k, secrets=secrets)}' for k, v in fields)})"


def _fields_of(value: Any) -> dict[str, Any] | None:
    from sagaz_core.storage.codec import Opaque

    if isinstance(value, Opaque):
        found: dict[str, Any] = {}
        for section, content in value.fields.items():
            if section != "unset":
                found.update(content if isinstance(content, Mapping) else {section: content})
        return found
    names = getattr(type(value), "__dataclass_fields__", None) or getattr(type(value), "model_fields", None)
    if not names or isinstance(value, type):
        return None
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _name_of(value: Any) -> str:
    return str(getattr(value, "type_name", "") or type(value).__name__).rpartition(":")[2]


def echo_json(data: Any) -> None:
    """Write data as JSON for a machine."""
    import json

    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table: as wide as the terminal, or as it needs where there is none."""
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    cells = [[printable(cell) for cell in row] for row in rows]
    unicode = terminal and "utf" in (sys.stdout.encoding or "").lower()
    table = Table(box=SIMPLE_HEAD if unicode else ASCII, header_style="bold" if coloured() else "")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not terminal)
    for row in cells:
        table.add_row(*map(Text, row))
    needed = 8 + sum(3 + max(map(len, column)) for column in zip(columns, *cells, strict=True)) * 2  # wide characters
    console = Console(
        width=None if terminal else needed,
        force_terminal=terminal,
        color_system="auto" if coloured() else None,
        highlight=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
