"""What the arms of a comparison are called."""

from collections.abc import Collection

SEVERAL = "twofour.bench.arms"  # the kind of a document of more than two models, whose arms have names of their own
ARMS = ("torch_dense", "dense", "sparse")  # of servers that are ours; of two URLs the last two


def arm_label(arm: str, arms: Collection[str]) -> str:
    """What an arm is called: dense is the best dense only where torch dense ran beside it."""
    if arm == "dense":
        return "best dense" if "torch_dense" in arms else "dense"
    return {"torch_dense": "torch dense", "sparse": "2:4"}[arm]
