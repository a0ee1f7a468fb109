"""Run configs for the tests: of a tiny model, and one with every section that MindFormers' files have."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# All that the tiny model `llama_mha` is, as a run config says it; the checkpoint need not have a config.json.
TINY: dict[str, Any] = {
    "run_mode": "predict",
    "model": {
        "model_config": {
            "type": "LlmBoostConfig",
            "llm_backend": "BuildIn",
            "boost_model_name": "Llama",
            "batch_size": 2,
            "seq_length": 256,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 176,
            "vocab_size": 257,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 256,
            "pad_token_id": 0,
            "compute_dtype": "float16",
            "use_past": True,
            "block_size": 16,
            "num_blocks": 64,
            "max_decode_length": 24,
            "do_sample": False,
        },
        "arch": {"type": "LlmBoostForCausalLM"},
    },
}

# The shape of MindFormers' own predict files: every top-level key that they have, with something in it.
WHOLE_FILE = """
seed: 0
output_dir: './output'
load_checkpoint: ''
src_strategy_path_or_dir: ''
auto_trans_ckpt: False
only_save_strategy: False
resume_training: False
run_mode: 'predict'
use_parallel: False
trainer: {type: CausalLanguageModelingTrainer, model_name: 'llama2_7b'}
runner_config: {epochs: 2, batch_size: 1, sink_mode: True, sink_size: 2, gradient_accumulation_steps: 8}
runner_wrapper:
  type: MFTrainOneStepCell
  scale_sense: {type: DynamicLossScaleUpdateCell, loss_scale_value: 65536, scale_factor: 2, scale_window: 1000}
  use_clip_grad: True
optimizer: {type: FP32StateAdamWeightDecay, beta1: 0.9, beta2: 0.95, eps: 1.e-8, learning_rate: 5.e-5}
lr_schedule: {type: CosineWithWarmUpLR, learning_rate: 5.e-5, lr_end: 0, warmup_ratio: 0.03, total_steps: -1}
train_dataset: &train_dataset
  data_loader: {type: MindDataset, dataset_dir: "", shuffle: True}
  input_columns: ["input_ids"]
  batch_size: 6
train_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *train_dataset
do_eval: False
eval_dataset: &eval_dataset
  data_loader: {type: MindDataset, dataset_dir: ""}
eval_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *eval_dataset
parallel:
  parallel_mode: 1
  full_batch: True
  strategy_ckpt_config: {save_file: "./ckpt_strategy.ckpt", only_trainable_params: False}
  parallel_optimizer_config: {gradient_accumulation_shard: False, parallel_optimizer_threshold: 64}
parallel_config:
  data_parallel: 1
  model_parallel: 1
  pipeline_stage: 1
  use_seq_parallel: False
  micro_batch_num: 1
  vocab_emb_dp: True
  gradient_aggregation_group: 4
micro_batch_interleave_num: 1
recompute_config: {recompute: False, select_recompute: False, mp_comm_recompute: True}
callbacks:
  - type: MFLossMonitor
  - {type: CheckpointMonitor, prefix: "llama2_7b", save_checkpoint_steps: 100}
context:
  mode: 1
  device_target: "Ascend"
  enable_graph_kernel: False
  ascend_config: {precision_mode: "must_keep_origin_dtype"}
  max_call_depth: 10000
  max_device_memory: "58GB"
  save_graphs: False
  save_graphs_path: "./graph"
  device_id: 0
model:
  model_config:
    type: LlamaConfig
    llm_backend: LLMBoost
    boost_model_name: Llama
    batch_size: 1
    seq_length: 4096
    hidden_size: 4096
    num_layers: 32
    num_heads: 32
    vocab_size: 32000
    multiple_of: 256
    rms_norm_eps: 1.0e-5
    bos_token_id: 1
    eos_token_id: [2]
    pad_token_id: 0
    ignore_token_id: -100
    compute_dtype: "float16"
    layernorm_compute_type: "float32"
    softmax_compute_type: "float32"
    rotary_dtype: "float16"
    param_init_type: "float16"
    use_past: True
    scaling_factor: 1.0
    extend_method: "None"
    use_flash_attention: True
    emb_dropout_prob: 0.0
    use_past_shard: False
    quant_config: null
    block_size: 16
    num_blocks: 1024
    is_dynamic: True
    qkv_concat: False
    offset: 0
    checkpoint_name_or_path: "llama2_7b"
    repetition_penalty: 1
    max_decode_length: 512
    top_k: 3
    top_p: 1
    do_sample: False
    auto_map: {AutoModel: llm_boost.LlmBoostForCausalLM, AutoTokenizer: [tokenizer.Tokenizer, null]}
  arch: {type: LlamaForCausalLM}
processor:
  return_tensors: ms
  tokenizer:
    unk_token: '<unk>'
    bos_token: '<s>'
    eos_token: '</s>'
    pad_token: '<unk>'
    vocab_file: "tokenizer.model"
    type: LlamaTokenizer
  type: LlamaProcessor
metric: {type: EmF1Metric}
eval_callbacks: [{type: ObsMonitor}]
auto_tune: False
filepath_prefix: './autotune'
autotune_per_step: 10
profile: False
profile_start_step: 1
profile_stop_step: 10
init_start_profile: False
profile_communication: False
profile_memory: True
layer_scale: False
layer_decay: 0.65
lr_scale_factor: 256
remote_save_url: "none"
"""


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with dotted paths replaced; None removes a key."""
    result = dict(values)
    for path, value in changes.items():
        first, _, rest = path.partition(".")
        if rest:
            result[first] = changed(result.get(first, {}), {rest: value})
        elif value is None:
            result.pop(first, None)
        else:
            result[first] = value
    return result


def write_run(directory: Path, checkpoint: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Writes the run config of the tiny model; changes of ``model.model_config`` may leave that out."""
    paths = {key if "." in key or key in ROOT_KEYS else f"model.model_config.{key}": value for key, value in
             (changes or {}).items()}  # fmt: skip
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(changed({**TINY, "load_checkpoint": str(checkpoint)}, paths)), "utf-8")
    return path


ROOT_KEYS = {"seed", "load_checkpoint", "run_mode", "use_parallel", "input_data", "only_save_strategy", "optimizer"}


def without_config(directory: Path, target: Path) -> Path:
    """A copy of a model directory that lacks the files which say what the model is."""
    shutil.copytree(directory, target)
    (target / "config.json").unlink()
    (target / "generation_config.json").unlink()
    return target
