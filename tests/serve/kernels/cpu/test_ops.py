"""The operators around the kernels: torch.compile, threads, processes, and input that must be refused."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import CheckpointError, InputError, ServerError
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.pattern import mask_from_scores
from twofour.prune.format.rounding import to_int8
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import extension, weight
from twofour.serve.kernels.cpu.kernel import CpuKernel
from twofour.serve.kernels.cpu.weight import CpuWeight

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")


def packed_weight(rows: int = 24, columns: int = 128, dtype: torch.dtype = torch.bfloat16) -> Packed:
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return pack((dense * mask_from_scores(dense.abs())).to(dtype))


def activations(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.fixture
def device() -> CpuWeight:
    return CpuWeight.from_packed(packed_weight())


def test_available_names_the_instruction_set() -> None:
    assert cpu.available() in extension.loaded().isas()  # type: ignore[union-attr]


def test_available_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_EXTENSION", None)
    monkeypatch.setattr(extension, "_REASON", "not built")
    assert cpu.available() == "none: not built"
    with pytest.raises(ServerError, match="no CPU kernel: not built"):
        CpuWeight.from_packed(packed_weight())


@pytest.mark.parametrize("shape", [(128,), (1, 128), (2, 3, 128), (0, 128), (2, 0, 128)])
def test_leading_dimensions_are_kept(device: CpuWeight, shape: tuple[int, ...]) -> None:
    x, dense = activations(*shape), packed_weight().unpack()
    y = cpu.linear(x, device)
    assert y.shape == (*shape[:-1], 24)
    assert torch.allclose(y.float(), x.float() @ dense.float().T, rtol=1e-2, atol=1e-2)


def test_activations_need_not_be_contiguous(device: CpuWeight) -> None:
    x = activations(128, 6).t()
    assert torch.equal(cpu.linear(x, device), cpu.linear(x.contiguous(), device))
    strided = activations(12, 128)[::2]
    assert torch.equal(cpu.linear(strided, device), cpu.linear(strided.clone(), device))
    unaligned = activations(3 * 128 + 1)[1:].view(3, 128)
    assert torch.equal(cpu.linear(unaligned, device), cpu.linear(unaligned.clone(), device))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_gradient_mode_gives_the_same(device: CpuWeight, mode: Callable[[], object]) -> None:
    expected = cpu.linear(activations(3, 128), device)
    with mode():  # type: ignore[attr-defined]
        assert torch.equal(cpu.linear(activations(3, 128), device), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("crossover", [4, 0])
def test_within_an_operator_the_kernel_gives_the_same(dtype: torch.dtype, crossover: int) -> None:
    kernel = CpuKernel.from_packed(packed_weight(), crossover)
    x, bias = activations(3, 128).to(dtype), torch.ones(24, dtype=dtype)
    assert torch.equal(kernel.inside(x, bias), kernel(x, bias))


def test_compiled_in_one_graph(device: CpuWeight) -> None:
    dense, bias = CpuWeight.from_dense(activations(8, 24)), activations(24)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def forward(x: Tensor) -> Tensor:
        return cpu.linear(torch.relu(cpu.linear(x, device, bias)), dense) + 1

    for tokens in (1, 5, 300):  # the last one goes through panels
        x = activations(tokens, 128)
        with torch.inference_mode():
            expected = cpu.linear(torch.relu(cpu.linear(x, device, bias)), dense) + 1
            assert torch.equal(forward(x), expected)


def test_operators_keep_torchs_rules(device: CpuWeight) -> None:
    arguments = (activations(3, 128), device.data, activations(24), 24, 128, 0, 256)
    torch.library.opcheck(torch.ops.twofour.linear24_cpu.default, arguments)
    dense = CpuWeight.from_dense(activations(24, 128))
    torch.library.opcheck(torch.ops.twofour.linear_dense_cpu.default, (activations(3, 128), dense.data, None, 24, 128))


def test_several_threads_at_once() -> None:
    device = CpuWeight.from_packed(packed_weight(512, 1024))
    inputs = [activations(tokens, 1024) for tokens in (1, 2, 3, 40)]
    expected = [cpu.linear(x, device) for x in inputs]
    wrong: list[int] = []

    def repeat(index: int) -> None:
        for _ in range(20):
            if not torch.equal(cpu.linear(inputs[index], device), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=repeat, args=(index,)) for index in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_spawned_process(device: CpuWeight) -> None:
    x = activations(4, 128)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply_async(cpu.linear, (x, device)).get(60), cpu.linear(x, device))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_process_runs_serially() -> None:
    """torch's thread pool does not survive a fork: whoever waits for it waits for ever."""
    device, x = CpuWeight.from_packed(packed_weight(512, 1024)), activations(40, 1024)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = cpu.linear(x, device)  # starts the pool
    torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        torch.set_num_threads(2)
        few, many = cpu.linear(x, device), cpu.linear(x, device, crossover=0)
        theirs.send_bytes(few.view(torch.uint8).numpy().tobytes() + many.view(torch.uint8).numpy().tobytes())

    process = context.Process(target=child)
    process.start()
    try:
        assert ours.poll(60), "no answer from the child"
        assert ours.recv_bytes() == expected.view(torch.uint8).numpy().tobytes() * 2
    finally:
        process.kill()
        process.join()


def test_serial_without_torchs_threads() -> None:
    """The extension alone, in a process that never loads torch or OpenMP."""
    code = (
        "import importlib.util as u; s = u.spec_from_file_location('twofour.serve.kernels.cpu._cpu', PATH);"
        "m = u.module_from_spec(s); s.loader.exec_module(m); import array;"
        "v = array.array('H', [0x3f80] * 512 * 32); p = bytes([0x44]) * 512 * 8; n = m.layout_bytes(0, 512, 64);"
        "w = bytearray(n); x = array.array('f', [1.0] * 64 * 64); y = array.array('f', [0.0] * 512 * 64);"
        "at = lambda b: (__import__('ctypes').c_char * 1).from_buffer(b);"
        "adr = lambda b: __import__('ctypes').addressof(at(b)); q = bytearray(p);"
        "m.pack(0, adr(v), adr(q), 0, 0, adr(w), 512, 64, 4);"
        "m.multiply(0, adr(w), adr(x), 0, adr(y), 64, 512, 64, 1, 4);"
        "assert set(y) == {32.0}, set(y); import sys; assert 'torch' not in sys.modules"
    )
    path = repr(extension.loaded().__file__)  # type: ignore[union-attr]
    subprocess.run([sys.executable, "-c", f"PATH = {path}\n{code}"], check=True, timeout=60, env=dict(os.environ))


@pytest.mark.parametrize("nibble", sorted(set(range(16)) - {4, 8, 9, 12, 13, 14}))
def test_invalid_positions_are_refused(nibble: int) -> None:
    packed = packed_weight()
    packed.positions[7, 3] = nibble | 0x40
    with pytest.raises(CheckpointError, match=f"invalid position nibble {nibble} at row 7, group 6"):
        CpuWeight.from_packed(packed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_values_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="expand this weight to dense"):
        CpuWeight.from_packed(packed_weight(dtype=dtype))


def test_other_scales_are_refused() -> None:
    packed = packed_weight()
    odd = Packed(packed.values.to(torch.int8), packed.positions, torch.ones(24, 4), 32)
    with pytest.raises(InputError, match="scale_columns 32"):
        CpuWeight.from_packed(odd)


def test_scales_that_do_not_fit_are_refused() -> None:
    packed = packed_weight()
    for shape, columns in (((24, 1), 64), ((23, 2), 64), ((24, 2), 0)):
        with pytest.raises(CheckpointError):
            CpuWeight.from_packed(Packed(packed.values.to(torch.int8), packed.positions, torch.ones(*shape), columns))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
@pytest.mark.parametrize("scale_columns", [0, 64])
def test_scales_that_are_no_scales_are_refused(scale_columns: int, bad: float) -> None:
    packed = to_int8(packed_weight(), scale_columns)
    assert packed.scales is not None
    packed.scales[23, -1] = bad
    with pytest.raises(CheckpointError, match="at row 23"):
        CpuWeight.from_packed(packed)


def misplaced(tensor: Tensor) -> list[Tensor]:
    """The same numbers, neither contiguous nor where a vector load would want them."""
    padded = torch.zeros(tensor.shape[0], tensor.shape[1] * 2, dtype=tensor.dtype)
    padded[:, 1::2] = tensor
    shifted = torch.cat((torch.zeros(1, dtype=tensor.dtype), tensor.flatten()))[1:].view(tensor.shape)
    return [padded[:, 1::2], tensor.t().contiguous().t(), shifted]


@pytest.mark.parametrize("kind", ["bf16", "int8", "int8 x64"])
def test_stored_tensors_may_lie_anywhere(kind: str) -> None:
    packed = packed_weight(21, 132)
    if kind != "bf16":
        packed = to_int8(packed, 64 if kind == "int8 x64" else 0)
    expected = CpuWeight.from_packed(packed).data
    for parts in zip(*(misplaced(tensor) for tensor in packed.tensors().values()), strict=True):
        moved = CpuWeight.from_packed(Packed(*parts, scale_columns=packed.scale_columns))
        assert torch.equal(moved.data, expected)


@pytest.mark.parametrize("kind", ["int8", "int8 x64"])
def test_a_device_weight_and_a_bias_may_lie_anywhere(kind: str) -> None:
    device = CpuWeight.from_packed(to_int8(packed_weight(), 64 if kind == "int8 x64" else 0))
    shifted = torch.cat((torch.zeros(1, dtype=torch.uint8), device.data))[1:]
    moved = CpuWeight(shifted, device.rows, device.columns, device.kind)
    x, bias = activations(3 * 128 + 1)[1:].view(3, 128), activations(25)[1:]
    for crossover in (0, 256):
        assert torch.equal(
            cpu.linear(x, moved, bias, crossover), cpu.linear(x.clone(), device, bias.clone(), crossover)
        )
    for part, tensor in moved.to_packed().tensors().items():
        assert torch.equal(tensor, device.to_packed().tensors()[part])


def test_only_a_2_4_weight_of_its_size_can_be_unpacked(device: CpuWeight) -> None:
    for wrong in (
        CpuWeight.from_dense(activations(24, 128)),
        CpuWeight(device.data[:-1], 24, 128, device.kind),
        CpuWeight(device.data, 32, 128, device.kind),
    ):
        with pytest.raises(InputError, match=r"no 2:4 weight of .*; build it with CpuWeight\.from_packed"):
            wrong.to_packed()


@pytest.mark.parametrize("dense", [torch.zeros(8, 8), torch.zeros(8).bfloat16(), torch.zeros(2, 8, 8).bfloat16()])
def test_what_the_dense_kernel_cannot_take(dense: Tensor) -> None:
    with pytest.raises(InputError, match="use torch's linear"):
        CpuWeight.from_dense(dense)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 128, dtype=torch.float16),
        torch.zeros(2, 128, dtype=torch.int64),
        torch.zeros(2, 127).bfloat16(),
        torch.zeros(2, 192).bfloat16(),
        torch.zeros(()).bfloat16(),
    ],
    ids=lambda x: f"{x.dtype} {list(x.shape)}",
)
def test_other_activations_are_refused(device: CpuWeight, x: Tensor) -> None:
    for crossover in (0, 256):
        with torch.inference_mode(), pytest.raises(InputError, match="CPU kernels take"):
            cpu.linear(x, device, crossover=crossover)


@pytest.mark.parametrize(
    ("rows", "columns", "kind"), [(25, 128, 0), (24, 128, 1), (24, 128, 3), (24, 128, 9), (-1, 128, 0)]
)
def test_a_weight_of_another_size_is_refused(device: CpuWeight, rows: int, columns: int, kind: int) -> None:
    x = activations(2, columns)
    with pytest.raises(InputError, match="build it with CpuWeight"):
        torch.ops.twofour.linear24_cpu(x, device.data, None, rows, columns, kind, 256)


@pytest.mark.parametrize(
    "data", [lambda d: d[:-1], lambda d: d.view(torch.int8), lambda d: d.repeat(2)[::2], lambda d: d.to("meta")]
)
def test_other_bytes_are_refused(device: CpuWeight, data: Callable[[Tensor], Tensor]) -> None:
    changed = CpuWeight(data(device.data), device.rows, device.columns, device.kind)
    with torch.inference_mode(), pytest.raises(InputError, match="build it with CpuWeight"):
        cpu.linear(activations(2, 128), changed)


@pytest.mark.parametrize("bias", [torch.zeros(23).bfloat16(), torch.zeros(24), torch.zeros(1, 24).bfloat16()])
def test_another_bias_is_refused(device: CpuWeight, bias: Tensor) -> None:
    for crossover in (0, 256):
        with torch.inference_mode(), pytest.raises(InputError, match="the bias must be"):
            cpu.linear(activations(2, 128), device, bias, crossover)


def test_forcing_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction set 'sse'"):
        weight.require().force("sse")
