"""OpenVINO GenAI with continuous batching, computing in bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from protocol import WholeAnswers, serve


class OpenVino(WholeAnswers):
    def __init__(self, directory: Path, threads: int) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = 1  # GB
        scheduling.enable_prefix_caching = False
        scheduling.max_num_batched_tokens = 2048
        self.pipeline = openvino_genai.LLMPipeline(
            str(directory),
            "CPU",
            scheduler_config=scheduling,
            INFERENCE_NUM_THREADS=threads,
            INFERENCE_PRECISION_HINT="bf16",
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.ignore_eos = True
        config.max_new_tokens = num_tokens
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return self.pipeline.generate(inputs, config).tokens


if __name__ == "__main__":
    serve(OpenVino)
