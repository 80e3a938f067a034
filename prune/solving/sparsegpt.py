"""SparseGPT: prune columns from left to right and let the columns to the right make up for it (arXiv 2301.00774).

With H = sum x x^T and U the upper factor of its inverse, H^-1 = U^T U, the row U_j,j: describes how the inputs from j
on, the remaining problem, compensate an error in input j: dropping w_j costs w_j^2 / U_jj^2, and takes
w_j / U_jj * U_j,k off every later w_k. So U_jj squared is right: it is the diagonal of the *remaining* inverse.

The mask of a group is chosen when its first column is reached, from weights that earlier columns have already
compensated. Work goes in blocks of columns: inside a block every group of four updates the block, the rest of the
matrix gets one product per block. An input that was never non-zero (diagonal 0) has its weights set to zero and its
diagonal to 1; then `damping` times the mean diagonal is added. The mask is applied once more at the end.

U is not computed as chol(inv(H)): with J the reversal of the inputs and J H J = L L^T, U = J L^-1 J is the same
matrix out of one factorisation and one triangular inverse, and keeps more digits where H is nearly singular.
"""

import torch
from torch import Tensor

from twofour.prune.errors import FactorError
from twofour.prune.format import pattern
from twofour.prune.format.pattern import GROUP


def sparsegpt(weight: Tensor, hessian: Tensor, damping: float = 0.01, block_columns: int = 128) -> Tensor:
    """Return the 2:4 weight [out, in] whose kept values make up for the dropped ones under the Hessian [in, in].

    Raises FactorError where the damped Hessian cannot be factored.
    """
    if block_columns % GROUP:
        raise ValueError(f"block_columns must be divisible by {GROUP}, got {block_columns}")
    dead = hessian.diagonal() == 0
    factor = inverse_factor(hessian, damping)
    left = weight.masked_fill(dead, 0).T.contiguous()  # [in, out]: a column of W is one run of memory
    mask = torch.zeros_like(left, dtype=torch.bool)
    for start in range(0, len(left), block_columns):
        stop = min(start + block_columns, len(left))
        errors, mask[start:stop] = _prune_block(left[start:stop], factor[start:stop, start:stop])
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return left.masked_fill_(~mask, 0).T.contiguous()


def damped(hessian: Tensor, damping: float) -> Tensor:  # [in, in] -> [in, in]
    """Return H + damping * mean(diag H) * I, dead inputs given a diagonal of 1."""
    diagonal = hessian.diagonal().clone()
    diagonal[diagonal == 0] = 1
    result = hessian.clone()
    result.diagonal().copy_(diagonal + damping * diagonal.mean())
    return result


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:  # [in, in] -> upper [in, in]
    """Return upper U with U^T U = (H + damping * mean(diag H) * I)^-1, dead inputs given a diagonal of 1."""
    # Both steps work in place, on matrices in LAPACK's order of memory: of width 14336 a copy takes 0.8 GB.
    lower = damped(hessian, damping).flip(0, 1).mT
    info = torch.empty((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device).mT
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    factor = inverse.flip(0, 1)
    del inverse
    if int(info) or not bool(torch.isfinite(torch.stack(factor.aminmax())).all()):
        raise FactorError(
            f"the Hessian ({len(hessian)} inputs, damping {damping:g}) is not positive definite; calibrate on more text"
        )
    return factor.contiguous()


def _prune_block(left: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:  # [columns, out], upper [columns, columns]
    """Prune a block in place; return its errors [columns, out], each over U_jj, and its mask."""
    errors = torch.zeros_like(left)
    mask = torch.zeros_like(left, dtype=torch.bool)
    for start in range(0, len(left), GROUP):
        stop = start + GROUP
        group = factor[start:stop, start:stop]
        mask[start:stop] = _choose(left[start:stop], group)
        _compensate(left[start:stop], mask[start:stop], group, errors[start:stop])
        left[stop:].addmm_(factor[start:stop, stop:].T, errors[start:stop], alpha=-1)
    return errors, mask


def _choose(left: Tensor, factor: Tensor) -> Tensor:  # [4, out], upper [4, 4] -> bool [4, out]
    scores = (left / factor.diagonal()[:, None]).square()
    return pattern.mask_from_scores(scores.T.contiguous()).T


def _compensate(left: Tensor, mask: Tensor, factor: Tensor, errors: Tensor) -> None:
    for j in range(GROUP):
        errors[j] = left[j] * ~mask[j] / factor[j, j]
        left[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
