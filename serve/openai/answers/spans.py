"""What a trace says of a generation; edge/observing/tracing.py sends it."""

from typing import Any

from twofour.serve.openai.answers.generation import Generation

OPERATIONS = {"chat.completion": "chat", "text_completion": "text_completion"}


def span_of(kind: str, model: str, generation: Generation) -> dict[str, Any]:
    """Names are those of OpenTelemetry's GenAI conventions and of vLLM; times are in seconds, of the first sequence."""
    job, first = generation.job, generation.timelines[0]
    sampling = job.prompts[0].sampling
    generated = sum(choice.generated_tokens for choice in generation.choices)
    return {
        "gen_ai.operation.name": OPERATIONS[kind],
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.n": job.n,
        "gen_ai.response.finish_reasons": [str(choice.finish or "abort") for choice in generation.choices],
        "gen_ai.usage.input_tokens": job.prompt_tokens,
        "gen_ai.usage.output_tokens": generated,
        "gen_ai.usage.prompt_tokens": job.prompt_tokens,
        "gen_ai.usage.completion_tokens": generated,
        "gen_ai.latency.time_in_queue": first.queue_s,
        "gen_ai.latency.time_to_first_token": first.first_token_s,
    }
