"""Hugging Face transformers on torch, in bfloat16."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from protocol import Engine, serve
from transformers import AutoModelForCausalLM


class Transformers(Engine):
    def __init__(self, directory: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def _run(self, prompts: list[list[int]], num_tokens: int) -> tuple[list[int], float, float]:
        started = time.perf_counter()
        output = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        first = time.perf_counter()
        tokens = [int(token[0, 0])]
        for _ in range(num_tokens - 1):
            output = self.model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token[0, 0]))
        return tokens, first - started, time.perf_counter() - first

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        return self._run([prompt], num_tokens)[0]

    def prefill(self, prompts: list[list[int]]) -> float:
        return self._run(prompts, 1)[1]

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        return self._run(prompts, num_tokens)[2]


if __name__ == "__main__":
    serve(Transformers)
