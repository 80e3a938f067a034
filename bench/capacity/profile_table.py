"""A profile for people."""

from typing import Any

from twofour.bench.capacity.profile import Profile, of_document

_SOURCES = {"steps": "the engine's step log", "client": "the client's view alone", "estimate": "no measurement"}


def table(document: dict[str, Any]) -> str:
    profile = of_document(document, "the document")
    lines = [
        f"{profile.name}: {profile.model}, by {_SOURCES[profile.source]}",
        "",
        *_terms(profile),
        "",
        *_rest(profile),
    ]
    if not profile.valid:
        lines += [
            "",
            f"NOT VALID: {', '.join(profile.failed) or 'cut off'}; measure it again before it is planned with",
        ]
    return "\n".join(lines)


def _terms(profile: Profile) -> list[str]:
    steps = profile.replica.steps
    return [
        "a step takes",
        f"  {steps.fixed_s * 1e3:10.4f} ms  whatever it computes",
        f"  {steps.prefill_s * 1e6:10.4f} us  for each prompt token",
        f"  {steps.decode_s * 1e6:10.4f} us  for each sequence that decodes",
        f"  {steps.kv_s * 1e9:10.4f} ns  for each token of the cache that they attend to",
        f"  {steps.pair_s * 1e9:10.4f} ns  for each pair of a prompt token and one that it attends to",
        f"  {profile.replica.around.between_s * 1e3:10.4f} ms  to the next step",
        f"  {profile.replica.around.first_s * 1e3:10.4f} ms  beside the steps, until the first token",
    ]


def _rest(profile: Profile) -> list[str]:
    limits, (decodes, prefill, kv) = profile.replica.limits, profile.hull.largest
    error = "not known" if profile.error is None else f"{profile.error:.1%}"
    return [
        f"a step is missed by {error} on average",
        f"measured up to {decodes:,.0f} decodes, {prefill:,.0f} prompt tokens, {kv:,.0f} tokens of the cache in a step",
        f"limits: {limits.max_num_seqs} sequences, {limits.max_num_batched_tokens:,} tokens in a step, "
        f"{limits.kv_blocks:,} blocks of {limits.block_size}, context {limits.context_length:,}",
        *profile.notes,
    ]
