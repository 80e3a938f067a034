"""Print the SBOM of the image in which this runs, as CycloneDX: what its dpkg and its Python have installed.

docker run --rm -i --entrypoint python3 IMAGE - NAME < .ci/image_sbom.py; nothing but Python itself is needed there.
"""

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

Component = dict[str, Any]
ASKED = "${db:Status-Abbrev}\t${binary:Package}\t${Version}\t${Architecture}\n"
LONGEST = 100  # of a licence's name; more is its text
CLASSIFIER = "License :: OSI Approved :: "


def component(kind: str, name: str, version: str, licenses: list[Any], qualifiers: str = "") -> Component:
    purl = f"pkg:{kind}/{quote(name, safe='/.-+_~')}@{quote(version, safe='.-+_~')}{qualifiers}"
    found = {"type": "library", "bom-ref": purl, "name": name.rpartition("/")[2], "version": version, "purl": purl}
    return {**found, "licenses": licenses} if licenses else found


def named(names: list[str]) -> list[Any]:
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def fields(package: Distribution, name: str) -> list[str]:
    return [str(value).strip() for value in package.metadata.get_all(name) or []]


def python_licenses(package: Distribution) -> list[Any]:
    """What its metadata says: an expression, the classifiers, or the name in the field that came before both."""
    expressions = fields(package, "License-Expression")
    if expressions:
        return [{"expression": expressions[0]}]
    classified = [name.removeprefix(CLASSIFIER) for name in fields(package, "Classifier") if CLASSIFIER in name]
    return named(classified or [name for name in fields(package, "License") if 0 < len(name) <= LONGEST])


def python_components() -> list[Component]:
    """The first of a name on the path is the one that is imported."""
    found: dict[str, Component] = {}
    for package in distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        found.setdefault(name, component("pypi", name, package.version, python_licenses(package)))
    return list(found.values())


def debian_licenses(package: str) -> list[Any]:
    """The names in its copyright file, where that is written for machines."""
    file = Path("/usr/share/doc", package, "copyright")
    text = file.read_text(errors="replace") if file.exists() else ""
    return named([name.strip() for name in re.findall(r"^License: *(\S.*)$", text, re.MULTILINE)])


def debian_components() -> list[Component]:
    system = platform.freedesktop_os_release()
    listed = subprocess.run(["dpkg-query", "--show", "--showformat", ASKED], capture_output=True, text=True, check=True)
    lines = [line.split("\t") for line in listed.stdout.splitlines() if line.startswith("ii")]
    release = f"&distro={system['ID']}-{system['VERSION_ID']}"
    names = [(package.partition(":")[0], version, machine) for _, package, version, machine in lines]
    return [
        component("deb", f"{system['ID']}/{name}", version, debian_licenses(name), f"?arch={machine}{release}")
        for name, version, machine in names
    ]


def document(image: str) -> dict[str, Any]:
    components = sorted([*debian_components(), *python_components()], key=lambda found: str(found["bom-ref"]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid4()}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "image", "name": image}},
        "components": components,
    }


if __name__ == "__main__":
    print(json.dumps(document(sys.argv[1]), indent=1))
