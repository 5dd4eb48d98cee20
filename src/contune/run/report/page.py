"""HTML from a template: escaped, self-contained, with plots inline. What every page of contune is made with."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from contune.run.report.figures import inline_svg
from contune.run.report.words import share, signed_points


def stylesheet() -> str:
    """The rules that all pages share."""
    return files("contune.run.report").joinpath("report.css").read_text(encoding="utf-8")


def render_page(package: str, template: str, values: Mapping[str, Any], css: str) -> str:
    """A template of a package as HTML."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def load(name: str) -> str:
        return files(package).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True, loader=FunctionLoader(load), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": share, "signed": signed_points}
    # The one place where text enters unescaped: matplotlib escapes what it draws, and `inline_svg` its label.
    environment.globals["svg"] = lambda plot: Markup(inline_svg(plot))
    page = environment.get_template(template).render(values, css=Markup(css))
    # Control characters and lone surrogates may stand in names but not in HTML.
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page)
