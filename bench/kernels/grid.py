"""What `bench kernels` measures: the matrices of models, how often each has them, for how many tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twofour.bench.targets.shapes import named
from twofour.prune.errors import InputError
from twofour.serve.kernels.race import DECODE_TOKENS

KIND = "twofour.bench.kernels"  # of the document
MOST_THREADS = 1024  # OpenMP ends the process where it cannot make them
FEWEST_ROUNDS = 2  # an interval needs two pairs

Matrix = tuple[int, int]  # (rows, columns) of a weight: (out, in)


@dataclass(frozen=True)
class Model:
    """`linears`: how many 2:4 linears have each matrix. `head`: that of lm_head, which stays dense."""

    name: str
    linears: dict[Matrix, int]
    head: Matrix | None


@dataclass(frozen=True)
class Grid:
    """`isa` None is the best that the machine has; `target_s` is about how long a contender's turn lasts."""

    models: tuple[Model, ...]
    tokens: tuple[int, ...]
    device: str = "cpu"
    threads: int = 1
    rounds: int = 7
    seed: int = 0
    isa: str | None = None
    target_s: float = 0.03

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 1 or len(set(self.tokens)) < len(self.tokens):
            raise InputError(f"{list(self.tokens)} are no numbers of tokens; give different ones from 1 on")
        if self.rounds < FEWEST_ROUNDS:
            raise InputError(f"{self.rounds} rounds give no interval; --rounds is at least {FEWEST_ROUNDS}")
        if not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"{self.threads} threads; --threads is from 1 to {MOST_THREADS}")
        for rows, columns in self.linears:
            if columns % 4:
                raise InputError(f"a linear of {rows} x {columns} cannot be 2:4: 4 does not divide its inputs")

    @property
    def linears(self) -> list[Matrix]:
        """Each matrix once, in the order of the models."""
        return list(dict.fromkeys(matrix for model in self.models for matrix in model.linears))

    @property
    def heads(self) -> list[Matrix]:
        return list(dict.fromkeys(model.head for model in self.models if model.head))

    @property
    def head_tokens(self) -> list[int]:
        """lm_head multiplies one token of each sequence, also while prompts are read."""
        return [tokens for tokens in self.tokens if tokens <= DECODE_TOKENS]


def of_shape(name: str) -> Model:
    """A model by the name of its shape."""
    shape = named(name)
    return Model(name, shape.linears(), (shape.vocab, shape.hidden))


def of_folder(folder: Path) -> Model:
    """The matrices of a model folder, packed or dense, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from twofour.prune.format.folder import read_config

    ignored = (read_config(folder).get("quantization_config") or {}).get("ignore", ())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    head = model.get_output_embeddings()
    linears: Sequence[torch.nn.Linear] = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and name not in ignored
    ]
    if not linears:
        raise InputError(f"{folder} holds no linear that is or could be 2:4; give another model")
    found = Counter((linear.out_features, linear.in_features) for linear in linears)
    return Model(folder.resolve().name, dict(found), head and (head.out_features, head.in_features))
