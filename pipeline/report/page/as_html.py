"""The report as one HTML page: no script, no network, nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.colours import colour
from pipeline.report import words
from pipeline.report.figures import Panel
from pipeline.report.page.contents import document
from pipeline.report.page.document import Document
from pipeline.report.page.report import Report


def html(report: Report) -> str:
    """The page as text. The same report gives the same bytes.

    Raises:
        InputError: as ``document``.
    """
    return rendered(document(report), report.compare.methods)


def rendered(of: Document, methods: Sequence[str]) -> str:
    """A document as a page; ``methods`` in the order of their colours."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["inline"] = _inline
    return environment.get_template("page.html").render(
        document=of,
        colours={method: colour(index) for index, method in enumerate(methods)},
    )


def _visible(value: object) -> object:
    """What is text yet, and no part of the page, as people should see it."""
    return (
        value if isinstance(value, Markup) or not isinstance(value, str) else words.visible(value)
    )


def _inline(panel: Panel) -> Markup:
    """A panel's drawing: drawn by us, and Matplotlib has escaped every text in it."""
    return Markup(panel.inline)
