"""From a template and what it shows to HTML; and from a drawing to the address an image tag takes."""

import base64
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from handful.report.figures import png
from handful.report.words import figures, interval

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure


def render(name: str, content: Mapping[str, Any]) -> str:
    """Fill a template of ``templates/``: everything is escaped, and a name it asks for in vain is an error."""
    return _environment().get_template(name).render(content)


def source(figure: "Figure", *, dpi: int = 180) -> str:
    """Return a drawing as a data URI, so that the page needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(png(figure, dpi=dpi)).decode('ascii')}"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("handful.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figures": figures, "interval": interval}
    return environment
