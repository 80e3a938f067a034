"""Registers the packed format in transformers as soon as transformers is there, and imports nothing before.

transformers keeps its quantizers in one module. If that is loaded, ours is added at once; else when it is loaded.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"


def register() -> None:
    """Make `from_pretrained(path, variant="twofour")` work, whichever of the two packages is imported first."""
    if REGISTRY in sys.modules:
        import_module("twofour.serve.model.quantizer")
    elif not any(isinstance(finder, RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, RegistryFinder())


class RegistryFinder(MetaPathFinder):
    """Finds only that module, as Python itself would, and lets a loader of ours load it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = ThenRegister(spec.loader)
        return spec


class ThenRegister(Loader):
    """Loads the module, then adds our quantizer."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module("twofour.serve.model.quantizer")
