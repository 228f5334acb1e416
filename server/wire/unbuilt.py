"""Parameters that clients of other servers send and this one does not act on.

Each is refused by name, never ignored: an answer that silently lacks what was asked
for is worse than none. Beside each name stand the values that ask for nothing, which
are let through, for some clients send every parameter there is.
"""

from __future__ import annotations

from server.wire.decoding import Harmless

NONE: Harmless = {}

BOTH: Harmless = {
    # OpenAI. `metadata` means something only for stored responses.
    "metadata": ({},),
    "moderation": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    # vLLM and its likes
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "guided_decoding_backend": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    # llama-server
    "cache_prompt": (True,),
    "dry_multiplier": (0, 0.0),
    "lora": ([],),
    "mirostat": (0,),
    "n_predict": (),
    "n_probs": (0,),
    "repeat_penalty": (1, 1.0),
    "typical_p": (1, 1.0),
    "xtc_probability": (0, 0.0),
}

CHAT: Harmless = {
    **BOTH,
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "audio": (),
    # A template from a request would be code from a request.
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_format": ("auto", "deepseek"),
    "verbosity": ("medium",),
    "web_search_options": (),
}

COMPLETIONS: Harmless = {
    **BOTH,
    "add_special_tokens": (True,),
    "max_completion_tokens": (),
    "suffix": ("",),
}

MESSAGE: Harmless = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}
"""Fields of a message. An assistant's answer, sent back as it came, must pass."""

STRUCTURED: Harmless = {
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "disable_fallback": (True, False),
    "structural_tag": (),
    "whitespace_pattern": (),
}
"""Fields of `structured_outputs`."""
