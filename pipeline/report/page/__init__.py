"""The report, for people: one self-contained HTML page, and the same in Markdown.

What is found is put in order and in words once, as a ``Document``; how it looks is up to
``as_html`` and ``as_markdown``.
"""

from __future__ import annotations

from pipeline.report.page.as_html import html
from pipeline.report.page.as_markdown import markdown
from pipeline.report.page.contents import document
from pipeline.report.page.provenance import Made, made
from pipeline.report.page.report import Report

__all__ = ["Made", "Report", "document", "html", "made", "markdown"]
