"""Markup of the report. Whatever is not markup already is text, and escaped."""

import html
from collections.abc import Iterable

VOID = ("img", "meta")


class Html(str):
    """Markup, to be used as it is; any other string is text."""


def element(name: str, /, *children, **attributes) -> Html:
    """An HTML or SVG element. None is left out; ``class_`` and ``stroke_width`` are class and
    stroke-width; a float has two decimals."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable) -> Html:
    """Elements and texts, one after the other, without those that are None."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def number(value) -> str:
    """As an attribute: two decimals, without zeros at the end."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def section(title: str, *children, class_: str | None = None) -> Html:
    return element("section", element("h2", title), *children, class_=class_)


def note(words: str) -> Html:
    return element("p", words, class_="note")


def number_cell(value) -> Html:
    return element("td", value, class_="number")


def table(heads: list[str], rows: list[list[Html]]) -> Html:
    """heads: a column's name, with # before it where it holds numbers. rows: of cells."""
    head = [
        element("th", name.lstrip("#"), class_="number" if name.startswith("#") else None)
        for name in heads
    ]
    body = [element("tr", *row) for row in rows]
    return element("table", element("thead", element("tr", *head)), element("tbody", *body))


def percent(share: float, signed: bool = False) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:{'+' if signed else ''}.0f} %".replace("-", "−")


def points(difference: float) -> str:
    """A difference of rates in percentage points, signed; to one decimal where it is below 1."""
    if not difference:
        return "0"
    return f"{100 * difference:+.{0 if abs(difference) >= 0.01 else 1}f}".replace("-", "−")
