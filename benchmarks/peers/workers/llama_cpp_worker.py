"""llama.cpp through the C functions that llama-cpp-python binds.

Decoding is timed as llama-bench times it: tokens are fed as they come from the prompt, nothing is sampled.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import llama_cpp
import numpy as np
from protocol import Engine, serve

_BATCH = 2048


class LlamaCpp(Engine):
    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = None
        self.room = (0, 0)
        self.batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        self._start(1, len(prompt) + num_tokens)
        self._feed([[token] for token in prompt], 0, sequences=False)
        tokens: list[int] = []
        for i in range(num_tokens):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (self.vocab,))
            tokens.append(int(logits.argmax()))
            self._feed([[tokens[-1]]], len(prompt) + i, sequences=False)
        return tokens

    def prefill(self, prompts: list[list[int]]) -> float:
        self._start(len(prompts), len(prompts[0]))
        started = time.perf_counter()
        self._prompts(prompts)
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        length = len(prompts[0])
        self._start(len(prompts), length + num_tokens)
        self._prompts(prompts)
        started = time.perf_counter()
        for i in range(num_tokens - 1):
            self._feed([[prompt[i % length]] for prompt in prompts], length + i, sequences=True)
        return time.perf_counter() - started

    def _start(self, sequences: int, length: int) -> None:
        """A context with room for so many sequences of this length, empty."""
        if self.room != (sequences, length):
            if self.context is not None:
                llama_cpp.llama_free(self.context)
            params = llama_cpp.llama_context_default_params()
            params.n_seq_max = sequences
            params.n_ctx = sequences * (-(-length // 256) * 256)  # shared out evenly, in multiples of 256
            params.n_batch = _BATCH
            params.n_ubatch = 512
            params.n_threads = params.n_threads_batch = self.threads
            self.context = llama_cpp.llama_init_from_model(self.model, params)
            self.room = (sequences, length)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _prompts(self, prompts: list[list[int]]) -> None:
        for number, prompt in enumerate(prompts):
            self._feed([[token] for token in prompt], 0, sequences=False, sequence=number)
        llama_cpp.llama_synchronize(self.context)

    def _feed(self, rows: list[list[int]], position: int, *, sequences: bool, sequence: int = 0) -> None:
        """One token for each sequence, or consecutive tokens of one; logits of the last, or of each sequence."""
        self.batch.n_tokens = len(rows)
        for i, (token,) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position if sequences else position + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = i if sequences else sequence
            self.batch.logits[i] = sequences or i == len(rows) - 1
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)


@llama_cpp.llama_log_callback
def _silence(_level: int, _text: bytes, _data: object) -> None:
    """Says nothing."""


if __name__ == "__main__":
    serve(LlamaCpp)
