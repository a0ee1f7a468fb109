"""From a run config to what a model is loaded from: checkpoint, model config, tokenizer and engine options."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_boost import _core
from llm_boost.errors import ConfigError
from llm_boost.hub import resolve_model
from llm_boost.model_config import ModelConfig
from llm_boost.model_source import ModelSource
from llm_boost.rope import RopeScaling, read_scaling
from llm_boost.run_config.reader import RunConfig
from llm_boost.text import Tokenizer, has_tokenizer, load_tokenizer, load_tokenizer_file

_MODEL = "model.model_config."
_BACKENDS = {"BuildIn": "auto", "LLMBoost": "auto", "ATB": "atb", "CPU": "cpu"}
_ARCHITECTURES = {"Llama": "llama", "Qwen": "qwen2"}
# Key -> the field of ModelConfig that the checkpoint determines, and its name in config.json.
_SHAPE_KEYS = {
    "hidden_size": ("hidden_size", "hidden_size"),
    "intermediate_size": ("intermediate_size", "intermediate_size"),
    "num_layers": ("num_layers", "num_hidden_layers"),
    "num_heads": ("num_heads", "num_attention_heads"),
    "n_kv_heads": ("num_kv_heads", "num_key_value_heads"),
    "vocab_size": ("vocab_size", "vocab_size"),
    "tie_word_embeddings": ("tie_word_embeddings", "tie_word_embeddings"),
    "qkv_has_bias": ("qkv_bias", "attention_bias"),
    "attn_proj_has_bias": ("output_bias", "attention_bias"),
}
_TOKENIZER_KINDS = {"LlamaTokenizer": "tokenizer.model", "Qwen2Tokenizer": "vocab.json"}
_SAMPLING_KEYS = (
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "min_new_tokens", "max_new_tokens",
    "max_decode_length",
)  # fmt: skip


def source_of_run(run: RunConfig, *, backend: str = "auto") -> ModelSource:
    """What a run config says is to be loaded.

    Args:
        run: The run config.
        backend: What goes before ``llm_backend``, unless it is "auto".

    Raises:
        ConfigError: The run config lacks something, contradicts the checkpoint or itself, or asks for what this
        TokenizerError: The tokenizer's files are malformed.
    """
    checkpoint = _checkpoint(run)
    options = _options(run, backend)
    config = config_of_run(run, checkpoint)
    longest = max(config.longest_context, run.model.model_config.seq_length or 0)
    return ModelSource(checkpoint, config, partial(_tokenizer, run, checkpoint), longest, options)


def config_of_run(run: RunConfig, checkpoint: Path) -> ModelConfig:
    """The model that a run config describes, `checkpoint` being that whose config.json it may rely on.

    Raises:
        ConfigError: The run config lacks something, or contradicts the checkpoint or itself.
    """
    return _ConfigBuilder(run, checkpoint).build()


def _checkpoint(run: RunConfig) -> Path:
    name = run.load_checkpoint
    if not name:
        raise ConfigError(
            f"{run.path}: load_checkpoint is empty; set it, or give --load_checkpoint: "
            "a model directory, a checkpoint, or the name of a pulled model"
        )
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        return resolve_model(name)
    except ConfigError as error:
        raise ConfigError(f"{run.where('load_checkpoint')}: no file or {error}") from error


# -- Engine options ------------------------------------------------------------------------------------------------


def _options(run: RunConfig, backend: str) -> dict[str, object]:
    keys = run.model.model_config
    _refuse_several_devices(run)
    name = backend if backend != "auto" else _backend(run)
    on_cpu = _is_cpu(name)
    if on_cpu and run.context.device_id:
        raise ConfigError(
            f"{run.where('context.device_id')} is {run.context.device_id}, but the CPU backend has only device 0"
        )
    options: dict[str, object | None] = {
        "backend": name,
        "activation_dtype": _activation_dtype(keys.compute_dtype, on_cpu=on_cpu),
        "block_size": keys.block_size,
        "num_blocks": keys.num_blocks,
        "max_num_seqs": keys.batch_size,
        "max_model_len": keys.seq_length,
        "need_nz": keys.need_nz,
        "communication_backend": keys.communication_backend,
        "device_id": run.context.device_id,
    }
    if keys.batch_size is not None:  # a step has room for a token of every sequence
        options["max_num_batched_tokens"] = max(_core.EngineOptions().max_num_batched_tokens, keys.batch_size)
    return {option: value for option, value in options.items() if value is not None}


def keys_for_other_backends(run: RunConfig) -> dict[str, str]:
    """Keys of a run config that the backend it chooses has no use for -> why."""
    names = ("need_nz", "communication_backend")
    if not _is_cpu(_backend(run)):
        return {}
    given = [_MODEL + name for name in names if getattr(run.model.model_config, name) is not None]
    return dict.fromkeys(given, "for NPUs; the CPU backend has no use for it")


def _is_cpu(backend: str) -> bool:
    return (_core.default_backend() if backend == "auto" else backend) == "cpu"


def _backend(run: RunConfig) -> str:
    name = _BACKENDS[run.model.model_config.llm_backend or "BuildIn"]
    if run.context.device_target != "CPU":
        return name
    if name == "atb":
        raise ConfigError(
            f"{run.where('context.device_target')} is CPU, but {run.where(_MODEL + 'llm_backend')} is ATB; change one"
        )
    return "cpu"


def _activation_dtype(compute_dtype: str | None, *, on_cpu: bool) -> str | None:
    # The CPU backend computes in float32 or bfloat16; of these, float32 holds every float16 number.
    return "float32" if on_cpu and compute_dtype == "float16" else compute_dtype


def _refuse_several_devices(run: RunConfig) -> None:
    parallel = run.parallel_config
    devices = (parallel.model_parallel or 1) * (parallel.pipeline_stage or 1) * (parallel.data_parallel or 1)
    if run.use_parallel and devices > 1:
        raise ConfigError(
            f"{run.where('use_parallel')} is True, and parallel_config asks for {devices} devices; this version runs "
            "on one: set use_parallel to False, or give --use_parallel False"
        )


# -- Model config --------------------------------------------------------------------------------------------------


class _ConfigBuilder:
    """Puts a model's config together from the run config and, where there is one, the checkpoint's config.json."""

    def __init__(self, run: RunConfig, checkpoint: Path) -> None:
        self._run = run
        self._keys = run.model.model_config
        self._file = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "config.json"
        self._problems: list[str] = []

    def build(self) -> ModelConfig:
        if self._file.is_file():
            base = ModelConfig.from_directory(self._file.parent)
            self._compare_shapes(base)
        else:
            base = self._base_of_keys()
        self._raise_problems()  # what follows makes no sense for another shape
        config = replace(
            base,
            **self._given(
                rms_norm_eps=self._keys.rms_norm_eps,
                rope_theta=self._keys.theta,
                rope_dtype=self._keys.rotary_dtype,
                max_position_embeddings=self._keys.max_position_embedding,
                bos_token_id=self._keys.bos_token_id,
                pad_token_id=self._keys.pad_token_id,
                eos_token_ids=self._keys.eos_token_id,
            ),
            generation_defaults=self._sampling(base),
        )
        self._check_token_ids(config)
        config = replace(config, rope_scaling=self._rope_scaling(config))
        self._check_length(config)
        self._raise_problems()
        return config

    @staticmethod
    def _given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    def _raise_problems(self) -> None:
        if self._problems:
            raise ConfigError(f"{self._run.path}: cannot be used:\n  " + "\n  ".join(self._problems))

    def _where(self, key: str) -> str:
        return self._run.where(_MODEL + key)

    def _compare_shapes(self, base: ModelConfig) -> None:
        for key, (name, file_name) in _SHAPE_KEYS.items():
            wanted, found = getattr(self._keys, key), getattr(base, name)
            if wanted is not None and wanted != found:
                self._problems.append(f"{self._where(key)} is {wanted}, but {self._file} says {file_name} {found}")
        rule = [key for key in ("ffn_dim_multiplier", "multiple_of") if getattr(self._keys, key) is not None]
        by_rule = self._llama_ffn(base.hidden_size)
        if rule and self._keys.intermediate_size is None and by_rule != base.intermediate_size:
            self._problems.append(
                f"{self._where(rule[0])} makes the intermediate_size {by_rule}, but {self._file} says "
                f"intermediate_size {base.intermediate_size}"
            )
        wanted = self._keys.boost_model_name
        if wanted is not None and _ARCHITECTURES[wanted] != base.architecture:
            self._problems.append(
                f"{self._where('boost_model_name')} is {wanted}, but {self._file} is of a {base.architecture} model"
            )

    def _base_of_keys(self) -> ModelConfig:
        """The config of a checkpoint that has no config.json: the run config must say everything."""
        keys = self._keys
        for name in ("hidden_size", "num_layers", "num_heads", "vocab_size", "seq_length"):
            if getattr(keys, name) is None:
                self._problems.append(f"{_MODEL}{name} is missing, and the checkpoint has no config.json that says it")
        hidden, heads = keys.hidden_size or 1, keys.num_heads or 1
        if hidden % heads:
            self._problems.append(f"{self._where('num_heads')} is {heads}, which does not divide hidden_size {hidden}")
        name = keys.boost_model_name or ("Qwen" if keys.qkv_has_bias else "Llama")
        return ModelConfig(
            architecture=_ARCHITECTURES[name],
            hidden_size=hidden,
            intermediate_size=keys.intermediate_size or self._llama_ffn(hidden),
            num_layers=keys.num_layers or 1,
            num_heads=heads,
            num_kv_heads=keys.n_kv_heads or heads,
            head_dim=hidden // heads,
            vocab_size=keys.vocab_size or 1,
            max_position_embeddings=keys.seq_length or 1,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            qkv_bias=name == "Qwen" if keys.qkv_has_bias is None else keys.qkv_has_bias,
            output_bias=keys.attn_proj_has_bias or False,
            tie_word_embeddings=keys.tie_word_embeddings or False,
        )

    def _llama_ffn(self, hidden: int) -> int:
        """Width of the feed-forward layer where only the rule is given, as MindFormers computes it."""
        wide, multiple = 4 * hidden, self._keys.multiple_of or 256
        if self._keys.ffn_dim_multiplier is not None:
            wide = int((self._keys.ffn_dim_multiplier + 0.01) * wide)
        return -(-(2 * wide // 3) // multiple) * multiple

    def _sampling(self, base: ModelConfig) -> dict[str, Any]:
        defaults = dict(base.generation_defaults)
        given = self._given(seed=self._run.seed, **{name: getattr(self._keys, name) for name in _SAMPLING_KEYS})
        if "max_decode_length" in given:
            defaults.pop("max_new_tokens", None)
        return defaults | given

    def _check_token_ids(self, config: ModelConfig) -> None:
        for key in ("bos_token_id", "pad_token_id", "eos_token_id"):
            given = getattr(self._keys, key)
            ids = given if isinstance(given, tuple) else () if given is None else (given,)
            if any(token >= config.vocab_size for token in ids):
                self._problems.append(
                    f"{self._where(key)} is {given}, but the vocabulary has {config.vocab_size} tokens"
                )

    def _rope_scaling(self, config: ModelConfig) -> RopeScaling:
        method, settings = self._keys.extend_method, self._keys.scaling_factor
        if method is None or method == "None":
            if settings and settings != {"factor": 1.0}:
                self._problems.append(f"{self._where('scaling_factor')} has no effect without an extend_method")
            if method == "None" and config.rope_scaling.method != "NONE":
                self._problems.append(
                    f"{self._where('extend_method')} is None, but {self._file} asks for "
                    f"{config.rope_scaling.method}; leave extend_method out to follow it"
                )
            return config.rope_scaling
        scaling, problems = read_scaling(method, settings or {}, config.max_position_embeddings, freqs_mgr=True)
        self._problems += (f"{self._where('extend_method')} is {method}: scaling_factor: {each}" for each in problems)
        return scaling

    def _check_length(self, config: ModelConfig) -> None:
        length, extends = self._keys.seq_length, self._keys.extend_method not in (None, "None")
        if length is not None and length > config.longest_context and not extends:
            self._problems.append(
                f"{self._where('seq_length')} is {length}, but the model was trained for {config.longest_context} "
                "tokens; choose an extend_method, or set max_position_embedding if it was trained for more"
            )


# -- Tokenizer -----------------------------------------------------------------------------------------------------


def _tokenizer(run: RunConfig, checkpoint: Path) -> Tokenizer | None:
    keys = run.processor.tokenizer
    settings = {
        name: value
        for name in (
            "unk_token", "bos_token", "eos_token", "pad_token", "add_bos_token", "add_eos_token", "chat_template",
            "model_max_length",
        )
        if (value := getattr(keys, name)) not in (None, "")
    }  # fmt: skip
    if not keys.vocab_file:
        if keys.merges_file:
            raise ConfigError(
                f"{run.where('processor.tokenizer.merges_file')} is '{keys.merges_file}', but there is no vocab_file, "
                "with which it goes; set both or neither"
            )
        directory = checkpoint if checkpoint.is_dir() else checkpoint.parent
        return load_tokenizer(directory, settings) if has_tokenizer(directory) else None
    vocab = _existing(run, "vocab_file", keys.vocab_file)
    merges = _existing(run, "merges_file", keys.merges_file) if keys.merges_file else None
    kind = _vocabulary_kind(run, vocab)
    if keys.type and kind != "tokenizer.json":
        settings["tokenizer_class"] = keys.type
    return load_tokenizer_file(kind, vocab, merges=merges, overrides=settings)


def _vocabulary_kind(run: RunConfig, vocab: Path) -> str:
    if vocab.name == "tokenizer.json":
        return vocab.name
    if named := (run.processor.tokenizer.type or "").removesuffix("Fast"):
        return _TOKENIZER_KINDS[named]
    kinds = {".model": "tokenizer.model", ".json": "vocab.json"}
    if vocab.suffix not in kinds:
        raise ConfigError(
            f"{run.where('processor.tokenizer.vocab_file')} is '{vocab}', whose name does not say what it is; "
            f"set processor.tokenizer.type to {' or '.join(_TOKENIZER_KINDS)}"
        )
    return kinds[vocab.suffix]


def _existing(run: RunConfig, key: str, name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"{run.where('processor.tokenizer.' + key)}: no file '{name}'; give --{key}, or leave it empty to take "
            "the tokenizer in load_checkpoint's directory"
        )
    return path
