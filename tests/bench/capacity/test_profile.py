import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from twofour.bench.capacity import hull, profile
from twofour.bench.capacity.profile import Around, EngineLimits, Hashes, Profile, Replica
from twofour.bench.capacity.step_model import StepModel
from twofour.prune.errors import InputError

STEPS = StepModel(8e-3, 3e-5, 6e-5, 6e-8, 1e-9)
MEASURED = Profile(
    "dense",
    "demo",
    Replica(EngineLimits(16, 2048, 100, 16, 1024, 64, False), STEPS, Around(2e-3, 1e-4), (0.9, 1.0, 1.2)),
    hull.around([0, 8], [64, 0], [0, 4000]),
    draws=(STEPS, replace(STEPS, fixed_s=9e-3)),
    error=0.04,
    quality_loss=0.02,
    sparse=False,
    weight_bits=16,
    hashes=Hashes("a", "b", "c", "d"),
    notes=("a note",),
)


def written(tmp_path: Path, **other: object) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.document(MEASURED, {"started": "2026-01-01T00:00:00+00:00"}) | other))
    return path


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = profile.read(written(tmp_path))
    assert known.replica.steps == STEPS and known.hashes == MEASURED.hashes
    assert json.dumps(asdict(known)) == json.dumps(asdict(replace(MEASURED, started="2026-01-01T00:00:00+00:00")))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"kind": "twofour.bench.run"}, "no profile"),
        ({"schema_version": 9}, "version 9"),
        ({"replica": {}}, r"replica\.limits"),
        ({"source": "a dream"}, "source"),
        ({"replica": asdict(replace(MEASURED.replica, residuals=()))}, r"replica\.residuals"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, other: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        profile.read(written(tmp_path, **other))


def test_what_is_no_file_or_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("none.json", "broken.json"):
        with pytest.raises(InputError, match="cannot be read"):
            profile.read(tmp_path / name)
