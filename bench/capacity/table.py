"""A plan for a person: the answer in a sentence, then what it rests on."""

from collections.abc import Iterator

from twofour.bench.report.plan_rows import Document, asked, cells, headline, remarks

_LABEL, _WIDTH = 32, 26


def table(document: Document) -> str:
    lines = [*remarks(document), headline(document), "", asked(document["asked"]), ""]
    return "\n".join([*lines, *_options(document), *_growth(document)])


def _options(document: Document) -> Iterator[str]:
    yield " " * _LABEL + "".join(f"{option['name']:>{_WIDTH}}" for option in document["options"])
    for label, found in cells(document):
        yield f"{label:{_LABEL}}" + "".join(f"{cell:>{_WIDTH}}" for cell in found)


def _growth(document: Document) -> Iterator[str]:
    per_month = document["asked"]["growth_per_month"]
    if per_month is None:
        return
    yield ""
    yield f"With {100 * per_month:.3g} % more traffic each month, machines by month:"
    for option in document["options"]:
        if option["growth"]:
            yield f"{option['name']:{_LABEL}}{_months(option['growth'])}"


def _months(growth: Document) -> str:
    lasts = growth["lasts_months"]
    until = "those of today last" if lasts is None else f"those of today last {lasts:.1f} months"
    return " ".join(str(month["machines"]) for month in growth["months"]) + f"; {until}"
