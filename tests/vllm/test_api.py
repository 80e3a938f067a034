"""Every name and signature of vLLM that the plugin leans on: an upgrade that moves one fails here, by its name.

What is installed is looked at, and so is the source of the newest version that was read, which `make judges` brings and
which need not be installed.
"""

import ast
import importlib
import inspect
import tarfile
from functools import cache
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parents[2] / ".venv" / "vllm-0.33.0.tar.gz"
LAYERS = "vllm.model_executor.layers"
CONFIG = f"{LAYERS}.quantization.base_config"
CREATE = "self layer input_size_per_partition output_partition_sizes input_size output_size params_dtype"
LEANED_ON = {
    "vllm.plugins load_general_plugins": "",
    "vllm.logger init_logger": "name",
    "vllm.logger _VllmLogger.info_once": "self msg args scope",
    f"{LAYERS}.quantization register_quantization_config": "quantization",
    f"{CONFIG} QuantizationConfig.__init__": "self",
    f"{CONFIG} QuantizationConfig.get_name": "self",
    f"{CONFIG} QuantizationConfig.get_supported_act_dtypes": "self",
    f"{CONFIG} QuantizationConfig.get_min_capability": "cls",
    f"{CONFIG} QuantizationConfig.get_config_filenames": "",
    f"{CONFIG} QuantizationConfig.from_config": "cls config",
    f"{CONFIG} QuantizationConfig.get_quant_method": "self layer prefix",
    f"{CONFIG} QuantizationConfig.maybe_update_config": "self model_name hf_config revision",
    f"{CONFIG} QuantizationConfig.apply_vllm_mapper": "self hf_to_vllm_mapper",
    f"{CONFIG} QuantizeMethodBase.process_weights_after_loading": "self layer",
    f"{LAYERS}.linear LinearMethodBase.create_weights": f"{CREATE} extra_weight_attrs",
    f"{LAYERS}.linear LinearMethodBase.apply": "self layer x bias",
    f"{LAYERS}.linear UnquantizedLinearMethod.apply": "self layer x bias",
    f"{LAYERS}.linear UnquantizedLinearMethod.process_weights_after_loading": "self layer",
    f"{LAYERS}.linear register_weight_loader_v2_supported_method": "cls",
    f"{LAYERS}.linear ColumnParallelLinear.weight_loader_v2": "self param loaded_weight",
    f"{LAYERS}.linear MergedColumnParallelLinear.weight_loader_v2": "self param loaded_weight loaded_shard_id",
    f"{LAYERS}.linear QKVParallelLinear.weight_loader_v2": "self param loaded_weight loaded_shard_id",
    f"{LAYERS}.linear RowParallelLinear.weight_loader_v2": "self param loaded_weight",
    f"{LAYERS}.vocab_parallel_embedding UnquantizedEmbeddingMethod.apply": "self layer x bias",
    f"{LAYERS}.vocab_parallel_embedding VocabParallelEmbedding.weight_loader": "self param loaded_weight",
    "vllm.model_executor.parameter BasevLLMParameter.__init__": "self data weight_loader",
    "vllm.model_executor.parameter _ColumnvLLMParameter.__init__": "self output_dim kwargs",
    "vllm.model_executor.parameter RowvLLMParameter.__init__": "self input_dim kwargs",
    "vllm.model_executor.parameter RowvLLMParameter.load_row_parallel_weight": "self loaded_weight",
    "vllm.model_executor.utils set_weight_attrs": "weight weight_attrs",
    "vllm.model_executor.model_loader.reload.layerwise initialize_online_processing": "layer",
    "vllm.model_executor.models.utils WeightsMapper.apply_list": "self values",
    "vllm.utils.torch_utils direct_register_custom_op": (
        "op_name op_func mutates_args fake_impl target_lib dispatch_key tags"
    ),
}
# What is not called but relied on, as it stands in a file.
SAID = {
    "model_executor/layers/fused_moe/__init__.py": '"RoutedExperts"',
    "model_executor/layers/vocab_parallel_embedding.py": "class ParallelLMHead(VocabParallelEmbedding)",
    "model_executor/parameter.py": "class ModelWeightParameter(_ColumnvLLMParameter, RowvLLMParameter)",
    "model_executor/model_loader/reload/layerwise.py": '"_already_called_process_weights_after_loading"',
    "model_executor/model_loader/reload/meta.py": "torch.empty_strided(",
    "lora/layers/utils.py": 'hasattr(base_layer, "weight_packed")',
}


@pytest.mark.parametrize("name", LEANED_ON)
def test_it_is_installed_as_the_plugin_expects(name: str) -> None:
    module, _, path = name.partition(" ")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "__func__", found)
    assert " ".join(inspect.signature(found).parameters) == LEANED_ON[name]


@pytest.mark.parametrize("file", SAID)
def test_a_file_that_is_installed_says_it(file: str) -> None:
    import vllm

    assert SAID[file] in (Path(vllm.__file__).parent / file).read_text()


@pytest.mark.skipif(not ARCHIVE.exists(), reason="`make judges` brings vLLM's source")
@pytest.mark.parametrize("name", LEANED_ON)
def test_it_is_so_in_the_newest_source_that_was_read(name: str) -> None:
    module, _, path = name.partition(" ")
    path_of = module.replace(".", "/")
    text = source(f"{path_of}.py") or source(f"{path_of}/__init__.py")
    assert text is not None
    body: list[ast.stmt] = ast.parse(text).body
    for part in path.split("."):
        (found,) = [each for each in body if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == part]
        body = found.body
    assert isinstance(found, ast.FunctionDef)
    arguments = [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]
    names = [each.arg for each in arguments] + ([found.args.kwarg.arg] if found.args.kwarg else [])
    assert " ".join(names) == LEANED_ON[name]


@pytest.mark.skipif(not ARCHIVE.exists(), reason="`make judges` brings vLLM's source")
@pytest.mark.parametrize("file", SAID)
def test_a_file_of_that_source_says_it(file: str) -> None:
    assert SAID[file] in (source(f"vllm/{file}") or "")


@cache
def source(file: str) -> str | None:
    with tarfile.open(ARCHIVE) as archive:
        try:
            found = archive.extractfile(f"{ARCHIVE.name.removesuffix('.tar.gz')}/{file}")
        except KeyError:
            return None
        assert found
        return found.read().decode()


def test_our_methods_take_the_loaders_that_know_parameters() -> None:
    """vLLM looks a method up by the name of its class."""
    from vllm.model_executor.layers.linear import WEIGHT_LOADER_V2_SUPPORTED

    from twofour.serve.vllm_plugin import from_dense, linear

    ours = [linear.TwofourLinearMethod.__name__, from_dense.TwofourFromDenseMethod.__name__]
    assert all(WEIGHT_LOADER_V2_SUPPORTED.count(name) == 1 for name in ours)
