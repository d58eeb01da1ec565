"""HTML and SVG by construction: text is escaped unless it is finished markup, so no caller can forget to.

Model answers, file names and recipe values are hostile; they reach a page through `tag` alone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = {"br", "img", "input", "meta"}
NONE = "\u2013"  # an empty cell


class Html(str):
    """Finished markup, which is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. None as a child or an attribute leaves it out, True gives a bare attribute.

    A trailing underscore of an attribute's name is dropped and the others become hyphens: class_, aria_label.
    Floats are rounded to two decimals (they are coordinates); write the numbers of a text yourself.
    """
    spelt = "".join(_attribute(key, value) for key, value in attributes.items())
    inside = "" if name in VOID else f"{join(children)}</{name}>"
    return Html(f"<{name}{spelt}>{inside}")


def join(children: Iterable[object], between: str = "") -> Html:
    """All children one after another, texts escaped, None left out."""
    return Html(escape(between).join(escape(child) for child in children if child is not None))


def table(names: Iterable[str], rows: Iterable[Html], *, class_: str) -> Html:
    """A table with a heading row, which scrolls by itself where the page is narrower."""
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    made = tag("table", tag("thead", head), tag("tbody", *rows), class_=class_)
    return tag("div", made, class_="scroll", tabindex="0")


def row_of(name: object, cells: Iterable[object], *, class_: str | None = None) -> Html:
    """A table row that begins with its name."""
    return tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells), class_=class_)


def escape(value: object) -> Html:
    """A text with &, <, > and quotes as entities and without control characters; markup stays as it is."""
    if isinstance(value, Html):
        return value
    text = str(value).encode("utf-8", "replace").decode()
    kept = (c if c.isprintable() or c in "\n\t\u00a0\u202f" else "\ufffd" for c in text)
    return Html(html.escape("".join(kept)))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'
