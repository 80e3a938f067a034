"""How heavy the load tester is: what its extra installs, and how long its verb takes to start."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def start_s() -> float:
    """CPU seconds from the start of a process to its end, which says what the flags are."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "twofour", "bench", "run", "--help"], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def extra_bytes(extra: str, package: str = "twofour") -> int:
    """What installing an extra adds to the package without it: the files of all that only the extra needs."""
    plain = _needed(package, "")
    return sum(_bytes(name) for name in _needed(package, extra) - plain)


def _needed(package: str, extra: str) -> set[str]:
    """All that a package needs here, and what that needs; of its extras only this one."""
    found, left = set[str](), [(package, extra)]
    while left:
        name, wanted = left.pop()
        for requirement in map(Requirement, _requires(name)):
            other = canonicalize_name(requirement.name)
            if other not in found and (not requirement.marker or requirement.marker.evaluate({"extra": wanted})):
                found.add(other)
                left += [(other, ""), *((other, more) for more in requirement.extras)]
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # another system's, or of another version of Python
        return []


def _bytes(name: str) -> int:
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return 0
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file())  # type: ignore[attr-defined]
