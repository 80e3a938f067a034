"""Do the linears of a model on a CPU add in one order, whatever number of tokens they are given at a time?

Our kernels do. torch's products do not, and they are used for many tokens where a race found them faster. Then two
equal requests, computed in chunks of different sizes, may differ in their last bits and, where two tokens are nearly
equally likely, in their text.
"""

from torch import nn

from twofour.serve.kernels import dense
from twofour.serve.kernels.cpu.kernel import CpuKernel
from twofour.serve.kernels.dense import DenseKernel, DenseLinear
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.linear import SparseLinear


def note(model: nn.Module, most_tokens: int) -> str | None:
    """What a user must know if equal requests may get different text; steps have up to `most_tokens` tokens."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear | SparseLinear | Int8Linear)]
    changing = sum(not _keeps_order(linear, most_tokens) for linear in linears)
    if not changing:
        return None
    return (
        f"equal requests may get different text where tokens are nearly as likely: {changing} of {len(linears)} "
        "linears add in an order that depends on how many tokens are computed at a time; bfloat16 with --kernels cpu "
        "keeps one"
    )


def _keeps_order(linear: nn.Module, most_tokens: int) -> bool:
    if isinstance(linear, Int8Linear):
        return linear.kernel is not None
    kernel = linear.choice.kernel if isinstance(linear, SparseLinear) and linear.choice else linear
    if isinstance(kernel, CpuKernel):
        return kernel.crossover_tokens >= most_tokens
    if isinstance(kernel, DenseKernel | DenseLinear):
        return dense.takes(kernel.weight) and kernel.crossover_tokens >= most_tokens
    return False
