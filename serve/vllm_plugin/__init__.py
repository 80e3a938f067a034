"""2:4 checkpoints in vLLM: a plugin that vLLM finds by itself where both are installed.

In comes a folder as `twofour prune` wrote it, or a dense one with `-q twofour`; out come vLLM's linears, multiplying by
our kernels. Read `versions` (which vLLM), `config` (what the folder says), `layers` (which layer is loaded how),
`linear` (parameters as they are on disk, then a kernel), `from_dense` (packed while loading), `dense_int8` and `head`
(what is dense in int8), `dense` (what stays dense), `intact` (what was not loaded, or is corrupt, by name) and `op`
(the one operator that a compiled model sees).

vLLM calls `register` in each of its processes, also where it serves a model that has nothing to do with us: it imports
little, and whatever goes wrong is a warning.
"""

import logging

log = logging.getLogger(__name__)


def register() -> None:
    """Make the quantization method `twofour` known to vLLM; a second call changes nothing. Never raises."""
    try:
        from twofour.serve.vllm_plugin import versions

        if versions.fits():
            from twofour.serve.vllm_plugin import config  # noqa: F401  (registers itself)
    except Exception:  # of any kind: it would end every start of vLLM here
        log.warning("twofour steps aside: this vLLM cannot load its plugin, 2:4 models are not served", exc_info=True)
