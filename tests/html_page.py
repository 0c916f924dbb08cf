"""A parser for pages of the report, and strings that a page must show as text."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "link", "br", "hr"}
HOSTILE = [
    "<script>alert(1)</script>", "\"'><img src=x onerror=alert(2)>", "</style></title></script>", "{{ 7 * 7 }}{% raw %}", "-->",
    "שלום עולם", "\u202etxt.exe", "x" * 300, "two\nlines\tand\x07bell", "🦄", "lone \ud800 surrogate", "&amp;&lt;",
]  # fmt: skip


class Page(HTMLParser):
    """A page as text, tags and attributes; fails on tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def flat(text: str) -> str:
    return " ".join(text.split())
