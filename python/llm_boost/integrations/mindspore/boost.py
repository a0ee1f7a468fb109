"""`LlmBoost`: a model that a framework drives step by step, with its own scheduler and block tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from llm_boost import _core
from llm_boost._suggest import unknown_name
from llm_boost.errors import CheckpointError, ConfigError, RequestError
from llm_boost.integrations.mindspore.config import BoostSettings
from llm_boost.integrations.mindspore.register import LlmBoostRegister, LlmBoostType
from llm_boost.integrations.mindspore.rotary import Table, half_table
from llm_boost.integrations.mindspore.step import Step, read_step
from llm_boost.integrations.mindspore.tensors import of_the_same_kind
from llm_boost.integrations.mindspore.weights import HeldWeights
from llm_boost.model import Model
from llm_boost.model_config import ModelConfig


@dataclass(slots=True)
class _Loaded:
    """The loaded model, the tables that it was loaded with, and the framework's that were found equal to them."""

    model: Model
    tables: tuple[Table, Table]
    given: tuple[Any, Any] = (None, None)


class LlmBoost:
    """A model in the shape that MindFormers expects of a boost.

    The framework calls, in this order, `init`, `set_weights`, `set_kvcache`, and then for each step `add_flags` and
    `forward`. Blocks of the cache are the framework's to give out: all of 0 to ``num_blocks`` - 1.

    Example:
        >>> boost = LlmBoostRegister.get_instance("BuildIn", "Llama", config=config)  # doctest: +SKIP
        >>> boost.init()  # doctest: +SKIP
        >>> boost.set_weights(mindspore.load_checkpoint("llama2_7b.ckpt"))  # doctest: +SKIP
        >>> boost.set_kvcache()  # doctest: +SKIP
        >>> boost.add_flags(is_first_iteration=True)  # doctest: +SKIP
        >>> logits = boost.forward(inputs)  # doctest: +SKIP
    """

    architecture: ClassVar[str]
    """The core's name of what the class runs."""

    def __init__(self, config: object) -> None:
        """Takes a `LlmBoostConfig`, or any object with its attributes.

        Raises:
            ConfigError: The config cannot be used.
        """
        self.config = config
        self.is_first_iteration = False
        self._settings = BoostSettings.read(config)
        self._weights: HeldWeights | None = None
        self._dtype = "auto"
        self._loaded: _Loaded | None = None

    def init(self) -> bool:
        """Checks that the backend is there.

        Returns:
            True: the framework prepares the inputs of `forward`.

        Raises:
            BackendError: This build, or this machine, does not have it.
        """
        return True

    def set_weights(self, parm_dict: Mapping[str, Any], dtype: object = None) -> None:
        """Takes the parameters of a checkpoint, which are packed for the backend with the first step.

        Args:
            parm_dict: NumPy arrays, or MindSpore tensors or parameters, under MindFormers' names, ``wq``, ``wk``,
                ``wv`` and ``w1``, ``w3`` being fused or not, or under Hugging Face's. Without ``lm_head.weight``, the
                embedding serves for it. Their memory is read, not copied; until the first
                step it must not change. The dictionary is left as it is.
            dtype: Convert to this type; None for as they are.

        Raises:
            CheckpointError: They do not fit the config; all problems are listed.
        """
        names = ("float32", "float16", "bfloat16")
        name = "auto" if dtype is None else str(dtype).lower()
        if name not in ("auto", *names):
            raise CheckpointError(unknown_name("dtype of set_weights", name, names))
        weights = HeldWeights.take(parm_dict)
        weights.table(self._model_config(weights))  # tells now what is wrong
        self._weights, self._dtype, self._loaded = weights, name, None

    def set_kvcache(self, k_caches: object = None, v_caches: object = None) -> None:
        """Asks for the KV cache, which is allocated together with the weights with the first step.

        Args:
            k_caches: Must be None: a backend has a layout of its own, so it cannot use a framework's tensors.
            v_caches: Likewise.

        Raises:
            ConfigError: Caches are given.
            CheckpointError: There are no weights yet.
        """
        if k_caches is not None or v_caches is not None:
            raise ConfigError("set_kvcache got caches, expected none: the cache lies in the backend's own layout")
        if self._loaded is None:
            self._held_weights()

    def add_flags(self, is_first_iteration: bool) -> None:
        """Says whether the next steps bring prompts (True) or one token a sequence (False)."""
        self.is_first_iteration = is_first_iteration

    def forward(self, boost_inputs: Mapping[str, Any]) -> Any:
        """Computes one step. T tokens of S sequences; every input is a NumPy array or a MindSpore tensor.

        Args:
            boost_inputs: The tensors by name.
                ``input_ids``: [T] tokens, those of a sequence one after another; or [S, length], padded at the end.
                ``position_ids``: [T] or padded likewise; None for where `batch_valid_length` puts them.
                ``cos_embed``, ``sin_embed``: [positions, head_dim] rotary tables, both halves alike; None for those
                that the config asks for. The tables of the first step stay; others are an error.
                ``block_tables``: [S, width] block numbers in order of position, -1 where unused.
                ``slot_mapping``: [T] block number * block_size + position % block_size; or padded likewise.
                ``batch_valid_length``: [S] tokens of each sequence after this step.
                ``seq_lens``: The same again; one of them is enough.
                ``lm_head_indices``: [R] tokens whose logits are wanted; None for the last of each prompt. Without
                meaning where sequences bring one token, as in the original.

        Returns:
            Logits of float32, [R, vocab_size], or [S, vocab_size] where sequences bring one token; a MindSpore tensor
            if ``input_ids`` is one. Sequences that have ended (their block table has no block for the token, or their
            slot is -1) get zeros.

        Raises:
            RequestError: A name is unknown, or the tensors contradict each other or the model.
            ConfigError: The rotary tables are not those of the first step.
            CheckpointError: There are no weights yet.
            BackendError: The backend is not available.
        """
        if not isinstance(boost_inputs, Mapping):
            raise RequestError(f"forward got {boost_inputs!r:.60}, expected a dictionary of tensors by name")
        inputs = {name: value for name, value in boost_inputs.items() if value is not None}
        model = self._model_with(inputs.pop("cos_embed", None), inputs.pop("sin_embed", None))
        info = model.info()
        step = read_step(
            inputs,
            is_first_iteration=self.is_first_iteration,
            block_size=info.block_size,
            max_blocks=-(-info.max_model_len // info.block_size),
        )

        def forward(piece: Step) -> npt.NDArray[np.float32]:
            return model.forward(
                token_ids=piece.token_ids,
                positions=piece.positions,
                slots=piece.slots,
                seq_begin=piece.seq_begin,
                context_len=piece.context_len,
                block_table=piece.block_table,
                logit_rows=piece.logit_rows,
            )

        logits = step.run(forward, info.max_num_batched_tokens, info.max_num_seqs, model.config.vocab_size)
        return of_the_same_kind(logits, boost_inputs["input_ids"])

    @property
    def model(self) -> Model:
        """The same model with llm_boost's own scheduler, which shares the cache; loaded if need be.

        Raises:
            CheckpointError: There are no weights yet.
        """
        return self._model_with(None, None)

    def _model_with(self, cos: Any, sin: Any) -> Model:
        """The model with these rotary tables, loaded if need be."""
        if self._loaded is None:
            self._loaded = self._load(self._half_tables(cos, sin))
        loaded = self._loaded
        known = (cos is None and sin is None) or (cos is loaded.given[0] and sin is loaded.given[1])
        if not known and not all(map(np.array_equal, self._half_tables(cos, sin), loaded.tables)):
            raise ConfigError(
                "cos_embed or sin_embed differ from those of the first step, which stay; make a new boost"
            )
        if not known:
            loaded.given = (cos, sin)
        return loaded.model

    def _half_tables(self, cos: Any, sin: Any) -> tuple[Table, Table]:
        settings = self._settings
        if cos is None and sin is None:
            return settings.rotary_tables()
        if cos is None or sin is None:
            raise RequestError("forward got one of cos_embed and sin_embed, expected both or none")
        shape = (settings.head_dim, settings.seq_length)
        return half_table("cos_embed", cos, *shape), half_table("sin_embed", sin, *shape)

    def _load(self, tables: tuple[Table, Table]) -> _Loaded:
        weights = self._held_weights()
        config = self._model_config(weights)
        core = config.to_core(max_positions=self._settings.seq_length)
        core.rope_cos, core.rope_sin = tables
        model = _core.LoadedModel(core, weights.table(config), self._settings.engine_options(self._dtype))
        self._weights = None  # the framework may free the parameters now
        return _Loaded(Model(model, config, None), tables)

    def _held_weights(self) -> HeldWeights:
        if self._weights is None:
            raise CheckpointError("there are no weights; call set_weights first")
        return self._weights

    def _model_config(self, weights: HeldWeights) -> ModelConfig:
        settings = self._settings
        return ModelConfig(
            architecture=self.architecture,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size or weights.intermediate_size,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            num_kv_heads=settings.num_kv_heads,
            head_dim=settings.head_dim,
            vocab_size=settings.vocab_size or weights.vocab_size,
            max_position_embeddings=settings.seq_length,
            rms_norm_eps=settings.rms_norm_eps,
            rope_theta=settings.theta,
            qkv_bias=weights.has("model.layers.0.attention.w_qkv.bias"),
            output_bias=weights.has("model.layers.0.attention.wo.bias"),
            tie_word_embeddings=weights.has_tied_head,
            eos_token_ids=settings.eos_token_ids,
        )


@LlmBoostRegister.register(LlmBoostType.CPU, "Llama")
@LlmBoostRegister.register(LlmBoostType.LLMBOOST, "Llama")
@LlmBoostRegister.register(LlmBoostType.ATB, "Llama")
@LlmBoostRegister.register(LlmBoostType.BUILDIN, "Llama")
class LlamaBoost(LlmBoost):
    """Models of the Llama family."""

    architecture = "llama"


@LlmBoostRegister.register(LlmBoostType.CPU, "Qwen")
@LlmBoostRegister.register(LlmBoostType.LLMBOOST, "Qwen")
@LlmBoostRegister.register(LlmBoostType.ATB, "Qwen")
@LlmBoostRegister.register(LlmBoostType.BUILDIN, "Qwen")
class QwenBoost(LlmBoost):
    """Models of the Qwen2 family."""

    architecture = "qwen2"
