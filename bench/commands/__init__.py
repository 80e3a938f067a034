"""The verbs `twofour bench ...`, one file each; `bench` names them."""
