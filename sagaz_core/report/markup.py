"""Elements of HTML and SVG. Text is escaped where it is put in, so that no name can become markup."""

from __future__ import annotations

import html
import re

_VOID = frozenset({"meta", "br", "col"})
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Return the text as markup; what no page may have in it, such as a control character, is replaced."""
    return text if isinstance(text, Markup) else Markup(html.escape(_CONTROL.sub("\ufffd", str(text))))


def tag(name: str, /, *children: object, **attributes: str) -> Markup:
    """Return an element. An attribute's `_` stands for `-`, one at its end is for names that Python has taken."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{''.join(map(escape, children))}</{name}>")
