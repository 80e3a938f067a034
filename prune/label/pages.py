"""The pages of reports: HTML in one frame that holds its style sheet, page.css; no script, no network."""

from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from twofour.prune.label.charts import style

Filters = dict[str, Any]  # name -> a function for the templates


def rendered(package: str, template: str, filters: Filters | None = None, **values: Any) -> str:
    """Fill in a template of a package, which extends `frame` and may import others of its package."""
    loader = FunctionLoader(partial(_text, package))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters or {})
    frame = environment.from_string(_text("twofour.prune.label", "frame.html"))
    return environment.get_template(template).render(frame=frame, style=style(), **values)


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
