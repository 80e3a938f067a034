"""The cuSPARSELt path without a GPU.

Nothing here runs cuSPARSELt. Proven: what torch's functions are called with (stand-ins that check every argument,
and torch's own meta functions where they exist), what is searched and kept, what is refused. Not proven: that the
library computes it, which tests/gpu does on a device.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.prune.format.packed import Packed, pack
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels import select
from twofour.serve.kernels.cusparselt import kernel as cusparselt
from twofour.serve.kernels.cusparselt import search as cusparselt_search
from twofour.serve.kernels.cusparselt.kernel import CusparseltKernel
from twofour.serve.kernels.cusparselt.search import Algorithm, Tuning

TUNING = Tuning(801, ((8, Algorithm(3, 4, 1)), (64, Algorithm(7))))


class Library:
    """Stands in for torch's functions: checks every argument, notes the algorithms asked for."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.asked: list[tuple[int, Algorithm]] = []
        self.blobs: list[int] = []  # addresses
        self.wrong: set[Algorithm] = set()

    def compress(self, dense: Tensor) -> Tensor:
        assert dense.dim() == 2 and dense.is_contiguous() and dense.dtype in (torch.bfloat16, torch.float16)
        assert dense.shape[0] % 16 == 0 and dense.shape[1] % 16 == 0
        assert not bool(torch.signbit(dense[dense == 0]).any())
        self.weights.append(dense)
        number = float(len(self.weights) - 1)  # which the blob carries, so that a copy of it multiplies too
        return torch.full((dense.shape[0], dense.shape[1] * 9 // 16), number, dtype=dense.dtype)

    def multiply(
        self, blob: Tensor, other: Tensor, bias: Tensor | None = None, transpose_result: bool = False, **chosen: int
    ) -> Tensor:
        weight = self.weights[int(blob[0, 0])]
        assert other.dtype == weight.dtype and other.shape[0] == weight.shape[1] and other.shape[1] % 8 == 0
        assert other.t().is_contiguous() and transpose_result and other.shape[1]
        assert bias is None or (bias.dtype == weight.dtype and bias.shape == (weight.shape[0],))
        self.asked.append((other.shape[1], Algorithm(**chosen)))
        self.blobs.append(blob.data_ptr())
        y = torch.nn.functional.linear(other.t(), weight, bias)
        return y * 1.1 if Algorithm(**chosen) in self.wrong else y


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stand_in = Library()
    monkeypatch.setattr(torch, "_cslt_compress", stand_in.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", stand_in.multiply)
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 801)
    return stand_in


def kernel(rows: int = 32, columns: int = 64, dtype: torch.dtype = torch.bfloat16) -> CusparseltKernel:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    return CusparseltKernel.from_packed(pack(magnitude(weight)))


@pytest.mark.parametrize("tuning", [None, TUNING])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64), (2, 3, 64), (0, 64), (8, 64), (2, 0, 64)])
def test_product(dtype: torch.dtype, shape: tuple[int, ...], tuning: Tuning | None) -> None:
    weight, bias = magnitude(torch.randn(32, 64).to(dtype)), torch.randn(32).to(dtype)
    made = replace(CusparseltKernel.from_packed(pack(weight)), tuning=tuning)
    x = torch.randn(shape).to(dtype)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(made(x, bias), expected, rtol=0.02, atol=0.02)  # padding changes the rounding
    assert made.nbytes == weight.nbytes * 9 // 16


def test_it_gives_back_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cusparselt, "_IDENTITY_ROWS", 24)  # in pieces, the last one shorter
    stored = pack(-magnitude(torch.randn(32, 64).bfloat16()))
    packed = CusparseltKernel.from_packed(stored).packed()
    assert torch.equal(packed.values, stored.values) and torch.equal(packed.positions, stored.positions)


def test_a_stored_negative_zero_never_reaches_the_compressor() -> None:
    packed = pack(magnitude(torch.randn(32, 64).bfloat16()))
    packed.values[:, ::3] = -0.0  # which `pack` never writes; the stand-in refuses it
    assert CusparseltKernel.from_packed(packed).nbytes


def test_every_number_of_tokens_gets_the_algorithm_of_its_bucket(library: Library) -> None:
    made = kernel().with_tuning(TUNING)
    for tokens in (1, 8, 9, 64, 65):
        made(torch.zeros(tokens, 64).bfloat16(), None)
    first, last = TUNING.algorithms[0][1], TUNING.algorithms[1][1]
    assert library.asked == [(8, first), (8, first), (16, last), (64, last), (72, last)]


def propose(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let torch's search propose Algorithm(2, 4, 1) of 5, and note what it is asked about."""
    proposals: list[Any] = []

    def mm_search(
        blob: Tensor, other: Tensor, bias: None, alpha: None, dtype: None, transposed: bool
    ) -> tuple[int, int, int, int]:
        assert other.t().is_contiguous() and other.shape[1] % 8 == 0 and transposed
        proposals.append(other)
        return 2, 4, 1, 5

    monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace(mm_search=mm_search), raising=False)
    return proposals


def timer(library: Library, times: dict[Algorithm, float]) -> Any:
    """Let a call take what `times` says of its algorithm, else 9 seconds."""

    def time_s(call: Any, calls: int) -> float:
        call()
        return times.get(library.asked[-1][1], 9.0) + (0.0 if calls >= 50 else 0.1)

    return time_s


def test_a_search_keeps_the_fastest_of_the_default_the_proposal_and_the_best(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals = propose(monkeypatch)
    proposed = Algorithm(2, 4, 1)
    for times, fastest in (
        ({proposed: 1.0}, proposed),
        ({Algorithm(4): 1.0, proposed: 2.0}, Algorithm(4)),
        ({Algorithm(3, 8, 2): 1.0, Algorithm(4): 2.0}, Algorithm(3, 8, 2)),  # a split that nobody proposed
        ({}, Algorithm()),  # a tie
    ):
        tuned = kernel().tuned((1, 8, 20), timer(library, times))
        assert tuned.tuning == Tuning(801, ((8, fastest), (24, fastest)))
    assert [x.shape for x in proposals[:2]] == [(64, 8), (64, 24)]
    assert all(len(x.unique()) > 8 * 32 for x in proposals)  # numbers, not ones: what they are costs power


def test_an_algorithm_that_does_not_take_the_shape_loses(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    propose(monkeypatch)

    def time_s(call: Any, calls: int) -> float:
        call()
        if library.asked[-1][1] != Algorithm(3):
            raise RuntimeError("not supported")
        return 1.0

    assert kernel().tuned((8,), time_s).tuning == Tuning(801, ((8, Algorithm(3)),))


def test_every_split_is_timed_where_tokens_are_few(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    propose(monkeypatch)
    kernel().tuned((256, 264), timer(library, {}))
    asked = {tokens: {found for count, found in library.asked if count == tokens} for tokens in (256, 264)}
    splits = [(1, -1), *((split, mode) for split in (2, 4, 8) for mode in (1, 2))]
    assert asked[256] == {Algorithm(number, *split) for number in range(5) for split in splits}
    assert asked[264] == {*(Algorithm(number) for number in range(5)), Algorithm(2, 4, 1)}


def test_the_weights_of_a_search_are_cold(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    propose(monkeypatch)
    made = kernel()
    monkeypatch.setattr(cusparselt_search, "RING_BYTES", 2 * made.nbytes + 1)
    turns: list[list[int]] = []

    def time_s(call: Any, calls: int) -> float:
        before = len(library.blobs)
        for _ in range(calls):
            call()
        turns.append(library.blobs[before:])
        return 1.0

    made.tuned((8,), time_s)
    assert all(len(set(own[:3])) == 3 and own == (own[:3] * len(own))[: len(own)] for own in turns)


def test_the_default_is_timed_before_torch_may_put_its_proposal_in_its_place(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a torch does that caches plans: from the search on, the default runs as fast as the proposal."""
    proposals = propose(monkeypatch)
    proposed = Algorithm(2, 4, 1)

    def time_s(call: Any, calls: int) -> float:
        call()
        found = library.asked[-1][1]
        return 1.0 if found == proposed or (found == Algorithm() and proposals) else 2.0

    assert kernel().tuned((8,), time_s).tuning == Tuning(801, ((8, proposed),))


def test_an_algorithm_with_another_product_loses(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    propose(monkeypatch)
    library.wrong = {Algorithm(3)}
    tuned = kernel().tuned((8,), timer(library, {Algorithm(3): 1.0, Algorithm(4): 2.0}))
    assert tuned.tuning == Tuning(801, ((8, Algorithm(4)),))


def test_a_search_that_the_library_refuses_keeps_the_default(
    library: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mm_search(*_: Any) -> tuple[int, int, int, int]:
        raise RuntimeError("CUSPARSE_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace(mm_search=mm_search), raising=False)
    assert kernel().tuned((8,), timer(library, {})).tuning == Tuning(801, ((8, Algorithm()),))
    assert "cannot search for 8 tokens" in caplog.text


def test_without_the_private_search_the_default_stays(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_cusparselt", raising=False)
    assert kernel().tuned((8,), timer(library, {})).tuning == Tuning(801, ((8, Algorithm()),))
    assert not library.asked


def test_a_tuning_is_stored_as_numbers_and_belongs_to_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tuning.from_numbers(801, TUNING.numbers) == TUNING
    assert TUNING.numbers == [8, 3, 4, 1, 64, 7, 1, -1]
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 810)
    with pytest.raises(InputError, match="tuning is of cuSPARSELt 801, loaded is 810; search again"):
        kernel().with_tuning(TUNING)
    with pytest.raises(InputError, match="numbers of tokens from 1 on, got \\[0\\]"):
        kernel().tuned((0,))


def test_torchs_own_meta_function_accepts_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    blob = torch.empty(32, 36, dtype=torch.bfloat16, device="meta")
    made = CusparseltKernel(blob, 32, 64, TUNING)
    y = cusparselt._linear(
        torch.empty(2, 5, 64, dtype=torch.bfloat16, device="meta"), blob, None, 32, 64, TUNING.numbers
    )
    assert y.shape == (2, 5, 32) and made(torch.empty(3, 64, dtype=blob.dtype, device="meta"), None).shape == (3, 32)


def test_one_compiled_graph_serves_any_number_of_tokens(library: Library) -> None:
    made = kernel().with_tuning(TUNING)
    compiled = torch.compile(lambda x: made(x, None) + 1, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 20):
            x = torch.randn(tokens, 64).bfloat16()
            assert torch.equal(compiled(x), made(x, None) + 1)


def test_the_operator_passes_torchs_own_checks() -> None:
    made = kernel()
    x = torch.randn(3, 64).bfloat16()
    torch.library.opcheck(cusparselt._op, (x, made.blob, None, 32, 64, TUNING.numbers))


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(1, 64).half(), None, "takes torch.bfloat16 of 64 columns, got torch.float16"),
        (torch.zeros(1, 48).bfloat16(), None, r"of 64 columns, got torch.bfloat16 \[1, 48\]"),
        (torch.tensor(1.0).bfloat16(), None, r"got torch.bfloat16 \[\]"),
        (torch.zeros(1, 64).bfloat16(), torch.zeros(31).bfloat16(), r"bias must be torch.bfloat16 \[32\]"),
        (torch.zeros(1, 64).bfloat16(), torch.zeros(32), "bias must be torch.bfloat16"),
    ],
)
def test_activations_and_bias_that_do_not_fit_are_refused(x: Tensor, bias: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kernel()(x, bias)


def test_tensors_on_two_devices_are_refused() -> None:
    elsewhere = torch.empty(32, dtype=torch.bfloat16, device="meta")
    with pytest.raises(InputError, match="on cpu, weight or bias elsewhere; move them together"):
        cusparselt._linear(torch.zeros(1, 64).bfloat16(), kernel().blob, elsewhere, 32, 64, [])


def test_refusals_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = pack(torch.zeros(32, 64).bfloat16())
    assert "multiples of 16 x 16, not 24 x 64" in str(cusparselt.refusal(pack(torch.zeros(24, 64).bfloat16())))
    assert "not 32 x 0" in str(cusparselt.refusal(pack(torch.zeros(32, 0).bfloat16())))
    assert "not torch.float32" in str(cusparselt.refusal(pack(torch.zeros(32, 64))))
    int8 = Packed(torch.zeros(32, 32, dtype=torch.int8), fits.positions, torch.ones(32, 1))
    assert "not torch.int8" in str(cusparselt.refusal(int8))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    assert cusparselt.refusal(fits) == "this torch has no cuSPARSELt"
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert cusparselt.refusal(fits) is None


def test_the_regressed_version_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cusparselt.warning() is None
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 800)
    assert "0.8.0" in str(cusparselt.warning())


def test_asking_for_it_on_the_cpu_says_why() -> None:
    with pytest.raises(InputError, match="it runs on cuda, the weight is on cpu"):
        select.choose(pack(torch.zeros(32, 64).bfloat16()), "cusparselt")
