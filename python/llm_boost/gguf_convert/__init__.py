"""Conversion of GGUF files, as llama.cpp uses them, to Hugging Face model directories."""

from __future__ import annotations

from llm_boost.gguf_convert.convert import convert_gguf

__all__ = ["convert_gguf"]
