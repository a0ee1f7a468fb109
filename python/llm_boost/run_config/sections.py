"""The keys of a run config, section by section: types, meanings, and which keys have no effect here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llm_boost.rope import METHODS
from llm_boost.run_config.keys import (
    Section,
    boolean,
    choice,
    integer,
    key,
    number,
    only,
    scaling,
    text,
    texts,
    token_id,
    token_ids,
    unused,
)

_DTYPES = ("float16", "bfloat16", "float32")
_MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigSection(Section):
    """``model.model_config``: the model's shape and numbers, the cache, and how tokens are chosen.

    Where a key is absent, the checkpoint's own config.json and generation_config.json decide.
    """

    type: str | None = key(
        choice("LlmBoostConfig", "LlamaConfig"), "The class that MindFormers would make; both have the same keys here."
    )
    llm_backend: str | None = key(
        choice("BuildIn", "LLMBoost", "ATB", "CPU"),
        "`BuildIn` is the best backend there is: ATB where there is an NPU, else the CPU. `ATB` and `CPU` choose one. "
        "`LLMBoost` named the original's other NPU backend, of which there is only one here; it means `BuildIn`.",
    )
    boost_model_name: str | None = key(
        choice("Llama", "Qwen"), "The architecture. A shape key. Absent: `Qwen` if `qkv_has_bias`, else `Llama`."
    )
    batch_size: int | None = key(integer(1, 4096), "Most sequences that are computed at once (`max_num_seqs`).")
    seq_length: int | None = key(integer(1), "Most tokens of a sequence, prompt and output (`max_model_len`).")
    hidden_size: int | None = key(integer(1), "Width of the residual stream. A shape key.")
    num_layers: int | None = key(integer(1), "Number of decoder layers. A shape key.")
    num_heads: int | None = key(integer(1), "Query heads; each has hidden_size / num_heads elements. A shape key.")
    n_kv_heads: int | None = key(integer(1), "Key and value heads. A shape key. Absent: num_heads.")
    intermediate_size: int | None = key(
        integer(1),
        "Width of the feed-forward layer. A shape key. Absent: 8/3 of hidden_size, rounded up to a multiple of "
        "`multiple_of`, as Llama has it.",
    )
    ffn_dim_multiplier: float | None = key(
        number(0, 100, above=True), "See `intermediate_size`: what is rounded is this plus 0.01 times as large."
    )
    multiple_of: int | None = key(integer(1), "See `intermediate_size`. Absent: 256.")
    vocab_size: int | None = key(integer(1), "Rows of the embedding. A shape key.")
    tie_word_embeddings: bool | None = key(boolean, "The output head is the embedding. A shape key. Absent: False.")
    qkv_has_bias: bool | None = key(boolean, "Queries, keys and values have a bias, as Qwen2's do. A shape key.")
    attn_proj_has_bias: bool | None = key(boolean, "The attention's output has a bias. A shape key. Absent: False.")
    max_position_embedding: int | None = key(
        integer(1), "Tokens of context that the model was trained for. Absent: seq_length."
    )
    rms_norm_eps: float | None = key(number(0, 1, above=True), "Epsilon of the norms. Absent: 1e-5.")
    theta: float | None = key(number(1, 1e12, above=True), "Base of the rotary frequencies. Absent: 10000.")
    extend_method: str | None = key(
        choice("None", *METHODS[1:]), "How the rotary frequencies are stretched for longer contexts; see below."
    )
    scaling_factor: Mapping[str, Any] | None = key(
        scaling, "By how much: a number, or for YARN and LLAMA3 a mapping of their settings."
    )
    bos_token_id: int | None = key(token_id, "The token that begins a text.")
    eos_token_id: tuple[int, ...] | None = key(token_ids, "The token that ends a text, or a list of them.")
    pad_token_id: int | None = key(token_id, "Reported by `Model.config`. Batches are never padded here.")
    compute_dtype: str | None = key(
        choice(*_DTYPES),
        "Type of matrix product inputs and of the cache. On the CPU, `bfloat16` is that, and `float16` and `float32` "
        "are float32, because the CPU backend has no float16 arithmetic. An NPU has all three. Weights stay as stored.",
    )
    rotary_dtype: str | None = key(choice(*_DTYPES), "Cosines and sines are rounded to this. Absent: float32.")
    use_past: bool | None = key(only(True, "there is no generation without a cache here"), "Must be True.")
    is_dynamic: bool | None = key(
        boolean, "False padded prompts to seq_length. Prompts are never padded here: both give the same tokens."
    )
    block_size: int | None = key(integer(1, 1024), "Tokens of a cache block; a multiple of 16 on the CPU.")
    num_blocks: int | None = key(integer(1), "Blocks of the cache. Absent: from the free memory.")
    need_nz: bool | None = key(
        boolean, "NPU: weights and cache in NZ format. Absent: as the chip demands. No effect on the CPU."
    )
    communication_backend: str | None = key(
        choice("lccl", "hccl", ""), "NPUs: how they talk to one another; empty: as the topology allows."
    )
    do_sample: bool | None = key(boolean, "Draw tokens at random; False takes the most likely one.")
    temperature: float | None = key(number(0, 100, above=True), "Logits are divided by it, if do_sample.")
    top_k: int | None = key(integer(0), "Only the k most likely tokens, if do_sample; 0 for all.")
    top_p: float | None = key(
        number(0, 1, above=True),
        "Only the most likely tokens that together reach this probability, if do_sample. The token that crosses it "
        "is kept, as in transformers; the original dropped it.",
    )
    repetition_penalty: float | None = key(
        number(0, 100, above=True), "Above 1 avoids tokens of the prompt and the output. Padding does not count."
    )
    max_decode_length: int | None = key(integer(1), "Most tokens of prompt and output together.")
    max_new_tokens: int | None = key(integer(1), "Most tokens of the output; goes before max_decode_length.")
    min_new_tokens: int | None = key(integer(0), "No output ends before it has so many tokens.")
    quant_config: None = key(only(None, "quantised checkpoints are not supported"), "Must be empty.")
    quantization_config: None = key(only(None, "quantised checkpoints are not supported"), "Must be empty.")
    pet_config: None = key(only(None, "adapters are not supported"), "Must be empty.")
    moe_config: None = key(only(None, "mixtures of experts are not supported"), "Must be empty.")
    parallel_decoding_params: None = key(only(None, "speculative decoding is not supported"), "Must be empty.")

    UNUSED: ClassVar[Mapping[str, str]] = unused(
        training="ignore_token_id emb_dropout_prob parallel_optimizer fine_grain_interleave pp_interleave_num "
        "embedding_init_type init_method_std calculate_per_token_loss return_hidden_states",
        graph="use_flash_attention use_attn_mask_compression use_ring_attention use_rope_slice use_past_shard "
        "compute_in_2d fused_rms_norm input_sliced_sig rmsnorm_compute_2d use_eod_attn_mask_compression chunk_prefill",
        cluster="parallel_config offset pipeline_stage",
        remote="auto_map",
        reader="qkv_concat param_init_type checkpoint_name_or_path",
        precision="layernorm_compute_type softmax_compute_type residual_dtype",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSection(Section):
    """``model.arch``."""

    type: str | None = key(
        choice("LlmBoostForCausalLM", "LlamaForCausalLM"), "The class that MindFormers would make; both are the same."
    )
    UNUSED: ClassVar[Mapping[str, str]] = unused(remote="auto_map")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection(Section):
    """``model``."""

    model_config: ModelConfigSection = field(default_factory=ModelConfigSection)
    arch: ArchSection = field(default_factory=ArchSection)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSection(Section):
    """``processor.tokenizer``; what it does not say comes from the files beside the vocabulary."""

    type: str | None = key(
        choice("LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"), "What vocab_file is."
    )
    vocab_file: str | None = key(
        text, "tokenizer.model, vocab.json or tokenizer.json. Empty: what is in load_checkpoint's directory."
    )
    merges_file: str | None = key(text, "merges.txt of a Qwen2 vocabulary. Empty: the one beside vocab_file.")
    unk_token: str | None = key(text, "The token of unknown characters.")
    bos_token: str | None = key(text, "The token that begins a text.")
    eos_token: str | None = key(text, "The token that ends a text.")
    pad_token: str | None = key(text, "The token that fills up a batch.")
    add_bos_token: bool | None = key(boolean, "Whether bos_token is put before a text.")
    add_eos_token: bool | None = key(boolean, "Whether eos_token is put behind a text.")
    chat_template: str | None = key(text, "Jinja source of the chat template. Empty: the checkpoint's.")
    model_max_length: int | None = key(integer(1, 1 << 40), "Reported by `Tokenizer.model_max_length`.")

    UNUSED: ClassVar[Mapping[str, str]] = unused(remote="auto_register", graph="max_length padding")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorSection(Section):
    """``processor``."""

    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    UNUSED: ClassVar[Mapping[str, str]] = unused(graph="return_tensors type")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSection(Section):
    """``context``."""

    device_id: int | None = key(integer(0, 1023), "The NPU to run on. The CPU backend has device 0 only.")
    device_target: str | None = key(
        choice("Ascend", "CPU"), "`CPU` makes `llm_backend: BuildIn` choose the CPU; `Ascend` changes nothing."
    )
    UNUSED: ClassVar[Mapping[str, str]] = unused(
        graph="mode enable_graph_kernel graph_kernel_flags ascend_config precision_mode max_call_depth "
        "max_device_memory mempool_block_size save_graphs save_graphs_path jit_config jit_level "
        "memory_optimize_level runtime_num_threads op_timeout affinity_cpu_list deterministic pynative_synchronize",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfigSection(Section):
    """``parallel_config``: counts only if `use_parallel`."""

    model_parallel: int | None = key(integer(1), "Devices that share each layer.")
    pipeline_stage: int | None = key(integer(1), "Groups of devices that share the layers.")
    data_parallel: int | None = key(integer(1), "Copies of the model.")
    UNUSED: ClassVar[Mapping[str, str]] = unused(
        training="micro_batch_num gradient_aggregation_group use_seq_parallel recompute",
        cluster="vocab_emb_dp context_parallel expert_parallel npu_nums_per_device",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSection(Section):
    """The top level of a run config."""

    load_checkpoint: str | None = key(
        text,
        "The weights: a Hugging Face directory, a MindSpore checkpoint, or the name of a pulled model. A relative path "
        "starts at the working directory.",
    )
    seed: int | None = key(integer(0, _MAX_SEED), "Seed of random choices, if do_sample. Absent: fresh ones each time.")
    run_mode: str | None = key(only("predict", "this is an inference engine"), "Must be `predict`.")
    use_parallel: bool | None = key(boolean, "Use as many devices as parallel_config says. More than one is an error.")
    input_data: tuple[str, ...] | None = key(texts, "The prompts of `llm-boost predict`, unless it is given others.")
    only_save_strategy: bool | None = key(only(False, "no strategy files are made here"), "Must be False.")
    model: ModelSection = field(default_factory=ModelSection)
    processor: ProcessorSection = field(default_factory=ProcessorSection)
    context: ContextSection = field(default_factory=ContextSection)
    parallel_config: ParallelConfigSection = field(default_factory=ParallelConfigSection)

    UNUSED: ClassVar[Mapping[str, str]] = unused(
        training="trainer runner_config runner_wrapper optimizer lr_schedule train_dataset train_dataset_task "
        "eval_dataset eval_dataset_task do_eval eval_step_interval eval_epoch_interval resume_training "
        "micro_batch_interleave_num recompute_config callbacks eval_callbacks metric layer_scale layer_decay "
        "lr_scale_factor lr_scale init_start_profile profile profile_start_step profile_stop_step "
        "profile_communication profile_memory profile_output profile_rank_ids profile_pipeline auto_tune "
        "filepath_prefix autotune_per_step output_dir monitor_config swap_config",
        cluster="parallel moe_config src_strategy_path_or_dir",
        remote="remote_save_url register_path auto_register",
        reader="auto_trans_ckpt load_safetensors load_ckpt_format checkpoint_format transform_process_num",
        graph="infer mindformers_version swap",
    )
