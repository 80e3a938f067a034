"""Replicas and schedules of any kind, for properties of the simulator."""

from dataclasses import replace

from hypothesis import strategies as st

from twofour.bench.capacity.profile import Around, EngineLimits, Replica
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.load.records import Part, Request
from twofour.bench.load.workload import Schedule

# No sum of these is the time of an arrival, or rounding would decide.
STEPS = StepModel(0.01, 0.0011, 0.0013, 0.00017, 0.00007)

LIMITS = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    kv_blocks=st.integers(6, 40),
    block_size=st.integers(1, 5),
    context_length=st.just(60),
    piece=st.sampled_from([0, 0, 3, 8]),
    prefix_cache=st.booleans(),
    shares_output=st.booleans(),
    policy=st.sampled_from(["twofour", "twofour", "vllm"]),
).map(lambda limits: replace(limits, piece=0) if limits.policy == "vllm" else limits)
REPLICAS = st.builds(
    Replica,
    limits=LIMITS,
    steps=st.just(STEPS),
    around=st.builds(Around, st.sampled_from([0.0, 0.004]), st.just(0.0010029)),
)


@st.composite
def schedules(draw: st.DrawFn, most: int = 24) -> Schedule:
    """Families that share one or two parts, and sessions, in an open or a closed loop."""
    concurrency, at, requests = draw(st.sampled_from([None, None, 1, 3])), 0.0, list[Request]()
    followed = set[int]()
    for index in range(draw(st.integers(1, most))):
        at += draw(st.sampled_from([0.0, 0.00710017, 0.05330019, 0.50170023]))
        sizes = {"prompt_tokens": draw(st.integers(1, 20)), "output_tokens": draw(st.integers(1, 14))}
        before = draw(st.sampled_from([None, None, None, *range(index)]))
        if before is not None and before not in followed:
            followed.add(before)
            tokens = (requests[before].prompt_tokens or 0) + sizes["prompt_tokens"]
            requests.append(
                Request(
                    index,
                    0.0,
                    "",
                    tokens,
                    sizes["output_tokens"],
                    before,
                    0.01300013 + 0.00071 * index,
                    family=requests[before].family,
                )
            )
            continue
        family = draw(st.sampled_from(["a", "b", str(index)]))
        parts = [Part(family, draw(st.integers(1, 12)))] if len(family) == 1 and family in "ab" else []
        parts += [Part(f"{family} more", draw(st.integers(1, 9)))] if parts and draw(st.booleans()) else []
        requests.append(Request(index, at, "", *sizes.values(), family=family, parts=parts))
    return Schedule(requests, concurrency, {})
