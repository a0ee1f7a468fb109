"""From text to tokens and back: tokenizers, chat templates, streaming detokenization."""

from __future__ import annotations

from llm_boost.text.detokenizer import StreamDetokenizer
from llm_boost.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, load_tokenizer_file

__all__ = ["StreamDetokenizer", "Tokenizer", "has_tokenizer", "load_tokenizer", "load_tokenizer_file"]
