"""A report as a browser would read it: its elements, its text and its figures."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


@dataclass
class HtmlPage:
    """`elements`: tag and attributes; `texts` what a person sees; `scripts` what stands in each script."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts[0]) if self.scripts else []
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = HtmlPage()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.page.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.page.scripts[-1] += data
        elif self._inside != "style":
            self.page.texts.append(data)


def read_page(html: str | Path) -> HtmlPage:
    parser = _Parser()
    parser.feed(html.read_text(encoding="utf-8") if isinstance(html, Path) else html)
    parser.close()
    return parser.page
