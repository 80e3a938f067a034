"""Mixtures of experts, taken apart: transformers holds the experts of a layer as two 3-D tensors, twofour as linears.

`gate_up_proj` [experts, 2 x width, in] and `down_proj` [experts, in, width] become three linears an expert, which look
into the same memory and have the names that published checkpoints store them under. So an expert's weight is pruned,
stored and loaded as any other linear's; its inputs are those of the tokens that the router sends to it.
"""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

# Class of the fused experts -> the names of an expert's linears: gate, up, down.
LINEARS = {
    "MixtralExperts": ("w1", "w3", "w2"),
    "OlmoeExperts": ("gate_proj", "up_proj", "down_proj"),
    "Qwen3MoeExperts": ("gate_proj", "up_proj", "down_proj"),
}
ROUTERS = ("MixtralTopKRouter", "OlmoeTopKRouter", "Qwen3MoeTopKRouter")
RENAMED = (".mlp.", ".block_sparse_moe.")  # Mixtral's: in transformers, in the checkpoint


class Expert(nn.Module):
    """down(act(gate x) * up x), the linears under the names given."""

    def __init__(self, names: tuple[str, str, str], weights: tuple[Tensor, Tensor, Tensor], act: nn.Module) -> None:
        super().__init__()
        self._names = names
        self.act = act
        self.given = torch.empty(0, dtype=torch.int64)  # which tokens of the batch it saw last
        for name, weight in zip(names, weights, strict=True):
            self.add_module(name, _linear(weight))

    def forward(self, x: Tensor) -> Tensor:  # [tokens, in] twice
        gate, up, down = (self.get_submodule(name) for name in self._names)
        result: Tensor = down(self.act(gate(x)) * up(x))
        return result


class Experts(nn.ModuleList):
    """The experts of one layer, called as the fused ones are."""

    def __init__(self, fused: nn.Module) -> None:
        self.names = LINEARS[type(fused).__name__]
        gate_up, down, act = (fused.get_parameter("gate_up_proj"), fused.get_parameter("down_proj"), fused.act_fn)
        gates, ups = gate_up.chunk(2, dim=1)
        assert isinstance(act, nn.Module)
        super().__init__(Expert(self.names, weights, act) for weights in zip(gates, ups, down, strict=True))

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Mix the outputs of the experts. hidden: [tokens, in]; chosen, shares: [tokens, experts of a token]."""
        mixed = torch.zeros_like(hidden)
        for number in chosen.unique().tolist():
            tokens, choices = torch.where(chosen == number)
            output = self._run(number, hidden, tokens) * shares[tokens, choices, None]
            mixed.index_add_(0, tokens, output.to(mixed.dtype))
        return mixed

    def run_empty(self) -> None:
        """Call every expert without a token, so that hooks on the linears have seen all of them."""
        for number in range(len(self)):
            weight = self.expert(number).get_parameter(f"{self.names[0]}.weight")
            self._run(number, weight.new_empty(0, weight.shape[1]), torch.empty(0, dtype=torch.int64))

    def expert(self, number: int) -> Expert:
        """One of the experts."""
        found = self[number]
        assert isinstance(found, Expert)
        return found

    def _run(self, number: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        expert = self.expert(number)
        expert.given = tokens
        output: Tensor = expert(hidden[tokens])
        return output

    def peers(self, path: str) -> Iterator[list[str]]:
        """The full names of the linears that have the same place in their experts."""
        return ([f"{path}.{number}.{name}" for number in range(len(self))] for name in self.names)


def take_apart(model: nn.Module) -> None:
    """Replace all fused experts of the families above by `Experts`."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ in LINEARS:
            model.set_submodule(name, Experts(module))


def is_router(module: nn.Module) -> bool:
    """Whether a module only decides which experts a token is sent to."""
    return type(module).__name__ in ROUTERS


def stored_name(name: str, stored: Collection[str]) -> str | None:
    """The name of a module in a checkpoint that holds the tensors `stored`; None if its weight is not among them."""
    return next((candidate for candidate in stored_names(name) if f"{candidate}.weight" in stored), None)


def stored_names(name: str) -> tuple[str, str]:
    """The names that a module of this name can have in a checkpoint."""
    return name, name.replace(*RENAMED)


def joins(patterns: Collection[str]) -> bool:
    """Whether transformers would make one tensor of the experts' that have these names in a checkpoint."""
    return any(".experts." in pattern and pattern.endswith(".weight") for pattern in patterns)


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return linear
