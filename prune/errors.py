"""Every error that twofour raises on purpose. The message says the fact, then the remedy.

TwofourError
├── InputError        a flag, a file or a value that was given
│   ├── TextError       calibration or evaluation text: missing, too short
│   └── OutputError     where a result should go: exists already, not writable, no space
├── ModelError        a model that cannot be pruned or served as it is
├── PatternError      a weight that is not 2:4
├── NonFiniteError    NaN or infinity in a weight, an activation or a statistic
├── FactorError       a Hessian that cannot be factored
├── CheckpointError   a model folder that is incomplete, corrupt or of an unknown format
└── ServerError       a server or engine that could not start or has died
"""


def in_a_line(error: BaseException) -> str:
    """Say an error of another package within a message of ours: its kind and the first line of its text."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


class TwofourError(Exception):
    """The base: the command line prints the message and exits with status 1."""


class InputError(TwofourError):
    """A flag, a file or a value that was given is wrong."""


class TextError(InputError):
    """Calibration or evaluation text is missing or too short."""


class OutputError(InputError):
    """The place for a result exists already, cannot be written or is full."""


class ModelError(TwofourError):
    """The model cannot be pruned or served as it is."""


class PatternError(TwofourError):
    """A weight is not 2:4."""


class NonFiniteError(TwofourError):
    """NaN or infinity in a weight, an activation or a statistic."""


class FactorError(TwofourError):
    """A Hessian cannot be factored."""


class CheckpointError(TwofourError):
    """A model folder is incomplete, corrupt or of an unknown format."""


class ServerError(TwofourError):
    """A server or engine could not start, or has died."""
