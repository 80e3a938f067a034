"""Which versions of vLLM the plugin was tried with, and what it does with others."""

import logging
import re

log = logging.getLogger(__name__)

# The tests ran with the first. Of the second, the source of what we lean on was read (tests/vllm/test_api.py).
TESTED = ((0, 32), (0, 33))
RANGE = "0.32 or 0.33"


def fits(version: str | None = None) -> bool:
    """Whether to register. Older versions lack what we need; a newer one is tried, with a warning."""
    found = _running() if version is None else version
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None:
        log.warning("twofour was not tried with vLLM %s, but with %s; it goes on", found, RANGE)
        return True
    minor = (int(numbers[1]), int(numbers[2]))
    if minor < min(TESTED):
        log.warning("twofour steps aside: vLLM %s is too old, 2:4 models need %s", found, RANGE)
        return False
    if minor > max(TESTED):
        log.warning("twofour was not tried with vLLM %s, but with %s; it goes on", found, RANGE)
    return True


def _running() -> str:
    import vllm

    return str(vllm.__version__)
