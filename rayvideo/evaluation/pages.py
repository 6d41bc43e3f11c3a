"""How the package's HTML pages are made: captions and names come from users' files, so everything is escaped."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

PAGES = PackageLoader("rayvideo.evaluation")


def environment() -> Environment:
    """Of the templates beside this file."""
    return Environment(loader=PAGES, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
