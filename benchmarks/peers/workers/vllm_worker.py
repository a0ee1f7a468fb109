"""vLLM's CPU backend, in this process."""

from __future__ import annotations

from pathlib import Path

from protocol import WholeAnswers, serve
from vllm import LLM, SamplingParams


class Vllm(WholeAnswers):
    def __init__(self, directory: Path, threads: int) -> None:  # its threads are set by the environment
        del threads
        self.llm = LLM(
            str(directory),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=2304,
            max_num_seqs=32,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(Vllm)
