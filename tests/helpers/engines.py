"""Which tests ask any server, and where vLLM behind our edge answers otherwise than our own engine: each with a reason.

    .venv/bin/pytest --engine vllm tests/serve
    .venv/bin/pytest --engine vllm -m slow tests/conformance

A deviation is expected to fail (strictly: one that no longer holds must go). docs/serving.md has them for people.
"""

import re
from collections.abc import Mapping

import pytest

# Not asked: tests that look into our engine or its process, or expect what their scripted engine says.
OWN = (
    *("test_the_access_log_has_no_prompt", "test_a_trace_is_echoed_and_logged", "keeps_its_id", "within_their_stream"),
    *("test_through_the_server", "test_whole_numbers_may_have_a_point", "test_without_keys_and_salts_all_share"),
    *("test_the_template_makes_the_prompt", "test_default_length", "test_several_prompts_and_n"),
    *("test_token_ids_go_as_they_are", "test_sampling_reaches_the_engine", "test_top_k_minus_one_is_off"),
    *("test_stop_string_across_tokens", "test_scoring_a_prompt", "test_scores_of_prompt_and_answer_join"),
    *(
        "test_infinite_logprobs",
        "test_nulls_mean_defaults",
        "test_what_reaches_the_engine",
        "test_clients_cannot_loosen_the_rules",
    ),
    *(
        "test_chat.py::test_logprobs",
        "test_without_the_library",
        "test_page.py",
        "test_a_hopeless_text_is_refused_unread",
        "test_lm_eval_scores_as_it_scores_the_model_itself",
    ),
)
SERVED = "vLLM serves it"
MORE = "vLLM's answers have more fields, null among them"
# Part of the name of a test -> why vLLM answers otherwise.
DEVIATIONS: Mapping[str, str] = {
    r"test_known_and_unsupported.*(prompt_logprobs|structured_outputs|use_beam_search|request_id)": SERVED,
    r"test_known_and_unsupported.*(truncate_prompt_tokens|truncation_side|/v1/completions-prompt_embeds)": SERVED,
    r"test_known_and_unsupported.*chat/completions-(tools|tool_choice|chat_template_kwargs|include_reasoning)": SERVED,
    r"test_inside_a_body\[(a name|calls)\]": SERVED,
    r"test_bad_fields_of_chat\[messages-\[\{'role': 'tool'": SERVED,
    r"test_what_others_have_is_pointed_to\[/v1/responses": SERVED,
    r"(test_completions|test_chat).py::test_whole_answer": MORE,
    r"test_stream_opens_with_the_role": MORE,
    r"test_app.py::test_models": MORE,
    r"test_requests_that_must_succeed|test_llm_comply": MORE,
    r"test_lm_eval_finds_the_same_continuations_greedy": "vLLM leaves out a character that an answer did not finish",
    r"test_stream_says_the_same_as_the_whole": "vLLM's streams have chunks without text",
    r"test_the_bytes_of_the_tokens": "vLLM's logprobs of a chat have the token that ended it",
    r"test_an_answer_that_cannot_fit": "vLLM shortens an answer to what fits beside its prompt",
    r"test_prompt_that_fills_the_context": "vLLM scores a prompt only where one more token would fit",
    r"test_several_greedy_choices": "vLLM refuses n above 1 at temperature 0",
    r"test_messages_that_the_template_refuses": "vLLM does not say that the template refused the messages",
    r"test_as_much_as_is_tokenised": "vLLM's tokenizer paths have no limit but that of the body",
    r"test_a_form_of_1500_fields": "vLLM gives llguidance less room, and refuses such a schema with 400",
    r"test_tokenize_as_vllm_does": "vLLM wants add_generation_prompt: false beside continue_final_message",
}


ASKING = {"shared", "vllm_server", "serve"}  # fixtures of which the option says what they start


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests that ask whatever server there is; expect those that deviate to fail."""
    asking = [item for item in items if asks_any_server(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    for item in asking:
        reasons = [reason for name, reason in DEVIATIONS.items() if re.search(name, item.nodeid)]
        if reasons:
            item.add_marker(pytest.mark.xfail(strict=True, reason=reasons[0]))
    items[:] = asking


def asks_any_server(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    return (
        bool(fixtures & ASKING) and "launch" not in fixtures and not any(re.search(name, item.nodeid) for name in OWN)
    )
