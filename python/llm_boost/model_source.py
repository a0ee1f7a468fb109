"""What a model is loaded from, wherever that is written down: a directory, or a run config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llm_boost.model_config import ModelConfig
from llm_boost.text import Tokenizer, has_tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Everything that `Model.from_pretrained` loads, and what it is told beyond its arguments.

    Attributes:
        checkpoint: Directory or file with the weights.
        config: The model's config.
        load_tokenizer: Gives the model's tokenizer, or None; takes a while for a large vocabulary. Raises
            TokenizerError when its files are malformed.
        longest_context: Most tokens of a sequence that may be asked for.
        options: Engine options that are set where the caller gives none.
    """

    checkpoint: Path
    config: ModelConfig
    load_tokenizer: Callable[[], Tokenizer | None]
    longest_context: int
    options: Mapping[str, object] = field(default_factory=dict)


def source_of_checkpoint(checkpoint: Path) -> ModelSource:
    """A model directory, or a file with weights in one.

    Raises:
        ConfigError: Its config cannot be used.
    """
    directory = checkpoint if checkpoint.is_dir() else checkpoint.parent
    config = ModelConfig.from_directory(directory)

    def tokenizer() -> Tokenizer | None:
        return load_tokenizer(directory) if has_tokenizer(directory) else None

    return ModelSource(checkpoint, config, tokenizer, config.longest_context)
