"""What every document of bench says in the same words, whatever its kind: docs/documents.md tells it to others."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twofour.prune.errors import InputError


class Envelope(BaseModel):
    """What a document of twofour bench says whatever its kind; all else belongs to the kind."""

    model_config = ConfigDict(extra="allow", title="twofour.bench document", strict=True)

    kind: str = Field(pattern=r"^twofour\.bench\.\w+$", description="which verb wrote it")
    schema_version: int = Field(1, ge=1, description="of the kind; it grows when a field goes or means another thing")
    started: str | None = Field(None, description="when the measurement began, ISO 8601 with its zone")
    command: list[str] | None = Field(None, description="the words of the command, without passwords and keys")
    versions: dict[str, str | None] | None = Field(None, description="python and packages; null: not installed")
    hardware: dict[str, Any] | str | None = Field(None, description="the machine of the command, or in words")
    valid: bool | None = Field(None, description="whether the figures may be quoted; null: the kind has no gates")
    cut_off: bool = Field(False, description="it was interrupted, and holds what was measured until then")


def checked(document: Any, name: str) -> dict[str, Any]:
    """Raises InputError where it is no document of bench."""
    try:
        Envelope.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"{name} is no document of a verb of bench ({where}: {first['msg']}); check the file"
        ) from None
    known: dict[str, Any] = document
    return known
