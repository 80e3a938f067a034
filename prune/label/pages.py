"""The pages of reports: HTML in one frame that holds its style sheet, page.css; no script, no network."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from twofour.prune.label.charts import style

Filters = dict[str, Any]  # name -> a function for the templates


def rendered(package: str, template: str, filters: Filters | None = None, **values: Any) -> str:
    """Fill in a template of a package, which extends `frame`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    frame = environment.from_string(_text("twofour.prune.label", "frame.html"))
    return environment.from_string(_text(package, template)).render(frame=frame, style=style(), **values)


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
