"""Hold SBOMs against the schema of CycloneDX: python .ci/check_sbom.py FILE..., where cyclonedx-bom is installed."""

import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def main(files: list[str]) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for file in files:
        fault = validator.validate_str(Path(file).read_text())
        if fault is not None:
            raise SystemExit(f"{file} is no CycloneDX 1.6: {str(fault)[:2000]}")


if __name__ == "__main__":
    main(sys.argv[1:])
