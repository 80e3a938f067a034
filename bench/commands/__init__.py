"""The verbs `twofour bench ...`, one file each; `bench` names them."""

INVALID = 3  # the exit status of a result that failed a gate, or that is not whole
