"""A byte tokenizer with the chat template and the special tokens of each published style."""

from functools import cache

from transformers import PreTrainedTokenizerFast

from minstate.lab.engines.small_engine import byte_tokenizer
from minstate.lab.engines.template_styles import CHATML_TOKENS, STYLES

__all__ = ["CHATML_TOKENS", "STYLES", "byte_tokenizer", "tokenizer"]


@cache
def tokenizer(style: str) -> PreTrainedTokenizerFast:
    """One token a byte, after the style's special ones."""
    template, special = STYLES[style]
    return byte_tokenizer(template, special)
