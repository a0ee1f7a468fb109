"""vLLM's CPU backend, in this process."""

from __future__ import annotations

import time
from pathlib import Path

from protocol import Engine, serve
from vllm import LLM, SamplingParams


class Vllm(Engine):
    def __init__(self, directory: Path, threads: int) -> None:  # its threads are set by the environment
        del threads
        self.llm = LLM(
            str(directory),
            dtype="bfloat16",
            max_model_len=2304,
            max_num_seqs=32,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return list(outputs[0].outputs[0].token_ids)

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        return self._generate([prompt], num_tokens)

    def prefill(self, prompts: list[list[int]]) -> float:
        return self.complete(prompts, 1)

    def complete(self, prompts: list[list[int]], num_tokens: int) -> float:
        started = time.perf_counter()
        self._generate(prompts, num_tokens)
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(Vllm)
