"""The page of a report: its parts as data, and the one HTML file that they become.

Everything that is text is escaped when the page is rendered; pictures are Plotly figures as JSON, in which
`report_figures.escape` has treated the texts. The page asks for nothing but itself: its policy forbids the rest.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from sftray.platform.terminal import show_controls

_ASSETS = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Cell:
    """`style` is a class of page.css: a state, `best`, `name`, `right`, `quote`; `note` stands small below."""

    text: str
    note: str = ""
    style: str = ""


@dataclass(frozen=True)
class Facts:
    """Large values with their titles."""

    pairs: Sequence[tuple[str, str, str]]  # title, value, small remark
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Words:
    """Paragraphs; `style` is `lead`, `note` or nothing."""

    lines: Sequence[str]
    style: str = ""
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Table:
    """`numbers` are the places of columns that are set flush right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers: Collection[int] = ()
    kind: ClassVar[str] = "table"

    @property
    def heads(self) -> list[Cell]:
        """The headers, which may break after an underscore; that of a column of names stays in sight with it."""
        styles = [cell.style for cell in self.cells[0]] if self.rows else [""] * len(self.headers)
        return [
            Cell(header.replace("_", "_\u200b"), style="name" if style == "name" else "")
            for header, style in zip(self.headers, styles, strict=True)
        ]

    @property
    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Listing:
    """A text as it stands in a file."""

    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Picture:
    """A figure (Plotly's JSON) with its title and what to see in it. `min_width`: px below which it scrolls."""

    title: str
    figure: str
    note: str = ""
    height: int = 320
    wide: bool = False
    min_width: int = 0


@dataclass(frozen=True)
class Pictures:
    """Side by side where there is room."""

    pictures: Sequence[Picture]

    @property
    def arranged(self) -> list[Picture]:
        """Two in a row; one that would stand alone in the last row fills it."""
        narrow = [index for index, picture in enumerate(self.pictures) if not picture.wide]
        last = narrow[-1] if len(narrow) % 2 else None
        return [replace(p, wide=True) if index == last else p for index, p in enumerate(self.pictures)]

    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Fold:
    """Parts that show when they are asked for."""

    summary: str
    parts: Sequence["Part"]
    kind: ClassVar[str] = "fold"


Part = Facts | Words | Table | Listing | Pictures | Fold


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """`state` and `why` say how it ended; `origin` where the files are."""

    kind: str
    name: str
    state: str
    why: str
    origin: str
    head: Sequence[Part]
    sections: Sequence[Section] = field(default_factory=tuple)


def render_page(page: Page) -> str:
    """The HTML of the whole page, with Plotly's library in it once, if there is a picture."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [picture.figure for section in page.sections for picture in _list_pictures(section.parts)]
    return environment.get_template("page.html.jinja").render(
        page=page,
        css=Markup((_ASSETS / "page.css").read_text(encoding="utf-8")),
        script=Markup((_ASSETS / "page.js").read_text(encoding="utf-8")),
        library=Markup(_load_library()) if figures else None,
        figures=Markup(f"[{','.join(map(escape_json, figures))}]"),
    )


def _finalize(value: Any) -> Any:
    """Control characters are spelled out; what is markup already stays."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else show_controls(value)


def _load_library() -> str:
    from plotly.offline import get_plotlyjs

    library: str = get_plotlyjs()
    return library.replace("</script", "<\\/script")  # in its texts, and it would end the script


def escape_json(text: str) -> str:
    """JSON that may stand in a script: no character in it can end one, and it means the same."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _list_pictures(parts: Sequence[Part]) -> list[Picture]:
    """In the order in which the template comes to them."""
    found: list[Picture] = []
    for part in parts:
        if isinstance(part, Pictures):
            found += part.pictures
        elif isinstance(part, Fold):
            found += _list_pictures(part.parts)
    return found
