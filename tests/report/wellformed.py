"""Reads a page as strictly as a person who wrote it by hand should: every element is closed, in order."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

_VOID = {"meta"}
_FETCHES = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "base", "form", "image", "use"}


class Page(HTMLParser):
    """A parsed page. `errors` are what is wrong with it, `texts` the text of each element, by its tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.stack: list[tuple[str, list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.feed(source)
        self.close()
        self.errors += [f"<{name}> is not closed" for name, _ in self.stack]
        ids = Counter(given["id"] for _, given in self.attributes if "id" in given)
        self.errors += [f"id {name!r} is there {count} times" for name, count in ids.items() if count > 1]
        for name, given in self.attributes:
            for label in given.get("aria-labelledby", "").split():
                if label not in ids:
                    self.errors.append(f"<{name}> is labelled by {label!r}, which is not there")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _FETCHES:
            self.errors.append(f"<{tag}> fetches something")
        for key, value in attrs:
            if key.startswith("on") or key in ("href", "src") or (key != "xmlns" and "://" in (value or "")):
                self.errors.append(f"{key}={value!r} of <{tag}>")
        if len({key for key, _ in attrs}) < len(attrs):
            self.errors.append(f"<{tag}> has an attribute twice")
        self.attributes.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in _VOID:
            self.stack.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack[-1][0] != tag:
            self.errors.append(f"</{tag}> closes nothing")
            return
        name, parts = self.stack.pop()
        text = "".join(parts)
        self.texts.setdefault(name, []).append(text)
        if self.stack:
            self.stack[-1][1].append(text)

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.stack[-1][1].append(data)

    def with_class(self, name: str) -> list[dict[str, str]]:
        """Return the attributes of every element of this class."""
        return [given for _, given in self.attributes if name in given.get("class", "").split()]
