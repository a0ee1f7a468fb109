"""Writes the golden graph texts. Read the difference before committing it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from reference.tiny_models import TINY_SPECS, write_tiny_model

from llm_boost import _core
from llm_boost.model_config import ModelConfig

for name in ("llama_mha", "llama_gqa_tied", "qwen2_tied"):
    with tempfile.TemporaryDirectory() as directory:
        config = ModelConfig.from_directory(write_tiny_model(Path(directory), TINY_SPECS[name]))
    path = Path(__file__).parent / "graphs" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_core.graph_text(config.to_core(max_positions=1)), encoding="utf-8")
