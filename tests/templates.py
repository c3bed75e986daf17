"""A byte tokenizer with the chat template and the special tokens of each published style."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minstate.lab.template_styles import CHAT, STYLES

__all__ = ["CHAT", "STYLES", "byte_tokenizer", "tokenizer"]


@cache
def tokenizer(style: str) -> PreTrainedTokenizerFast:
    """One token a byte, after the style's special ones."""
    template, special = STYLES[style]
    return byte_tokenizer(template, special)


def byte_tokenizer(template: str | None, special: list[str]) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template)
