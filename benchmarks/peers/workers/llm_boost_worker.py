"""This project."""

from __future__ import annotations

from pathlib import Path

from protocol import Engine, serve

from llm_boost import Model, SamplingParams
from llm_boost.cli.bench_model import time_requests


class LlmBoost(Engine):
    def __init__(self, directory: Path, threads: int) -> None:
        self.model = Model.from_pretrained(
            directory, num_threads=threads, max_model_len=2304, enable_prefix_caching=False, use_tqdm=False
        )

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        return list(self.model.generate(prompt, params)[0].outputs[0].token_ids)

    def facts(self) -> dict[str, object]:
        info = self.model.info()
        tokens = info.num_blocks * info.block_size
        return {"weight_bytes": info.weight_bytes, "cache_bytes_a_token": info.cache_bytes // tokens}

    def margin(self, prompt: list[int], token: int, other: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        last = [self.model.generate([*prompt, x], params)[0].prompt_logprobs[-1][x].logprob for x in (token, other)]
        return last[0] - last[1]

    def prefill(self, prompts: list[list[int]]) -> float:
        return time_requests(self.model, prompts, 1)[0]

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        return time_requests(self.model, prompts, num_tokens)[1]


if __name__ == "__main__":
    serve(LlmBoost)
