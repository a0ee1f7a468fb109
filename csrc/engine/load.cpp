#include "engine/load.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "backend/cpu/isa.h"
#include "base/error.h"
#include "base/host.h"
#include "base/memory.h"
#include "model/model.h"

namespace lb {
namespace {

// Prompts whose logprobs are wanted are computed in chunks of so many tokens: a row of logits can be 600 KB.
constexpr std::int64_t kPromptLogprobRows = 64;

void check_options(const EngineOptions& options, const ModelConfig& config) {
  const auto in_range = [](const char* option, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) throw ConfigError(cat(option, " is ", value, ", expected ", low, " to ", high));
  };
  in_range("num_threads", options.num_threads, 0, 1024);
  in_range("block_size", options.block_size, 0, 1024);
  in_range("num_blocks", options.num_blocks, 0, std::int64_t{1} << 24);
  in_range("max_num_seqs", options.max_num_seqs, 1, 4096);
  in_range("max_model_len", options.max_model_len, 0, config.max_positions);
  in_range("max_num_batched_tokens", options.max_num_batched_tokens, options.max_num_seqs, 65536);
  for (const std::int32_t token : options.eos_token_ids) in_range("eos_token_id", token, 0, config.vocab_size - 1);
}

// The type that all matrices will have, or float32 when they differ.
DType common_weight_dtype(const ModelGraph& graph, const WeightTable& weights, std::optional<DType> forced) {
  std::optional<DType> common;
  for (const WeightSpec& spec : expected_weights(graph)) {
    if (spec.shape.size() != 2) continue;
    const DType dtype = forced.value_or(weights.at(spec.name).dtype());
    if (common.value_or(dtype) != dtype) return DType::kF32;
    common = dtype;
  }
  return common.value_or(DType::kF32);
}

std::int64_t stored_bytes(const ModelGraph& graph, const WeightTable& weights) {
  std::int64_t bytes = 0;
  for (const WeightSpec& spec : expected_weights(graph))
    bytes += static_cast<std::int64_t>(weights.at(spec.name).bytes());
  return bytes;
}

// How many blocks, and how long a sample may be, as far as the user has not said.
void plan_cache(const ModelConfig& config, const EngineOptions& options, const Backend& backend,
                const ModelGraph& graph, std::int64_t stored_bytes, ProgramOptions& program,
                std::int64_t& max_model_len) {
  program.num_blocks = options.num_blocks;
  max_model_len = options.max_model_len;
  if (program.num_blocks == 0) {
    const std::int64_t wanted_len = max_model_len == 0 ? config.max_positions : max_model_len;
    const std::int64_t blocks_per_sample = ceil_div(wanted_len, program.block_size);
    const std::int64_t budget = backend.cache_budget(graph, program, stored_bytes);
    const std::int64_t block_bytes = backend.block_bytes(graph, program.block_size, program.activation_dtype);
    program.num_blocks = std::clamp<std::int64_t>(budget / block_bytes, 1, options.max_num_seqs * blocks_per_sample);
    if (options.max_model_len != 0) program.num_blocks = std::max(program.num_blocks, blocks_per_sample);
  }
  if (max_model_len == 0) max_model_len = std::min(config.max_positions, program.num_blocks * program.block_size);
  program.max_blocks = ceil_div(max_model_len, program.block_size);
}

// Passes on what comes a tenth of a second after what it passed on before, and the end. A Python program's callback
// waits for the interpreter, which may be busy with the tokenizer; so does a copy of it, hence the reference.
std::function<void(std::int64_t, std::int64_t)> now_and_then(
    const std::function<void(std::int64_t, std::int64_t)>& callback) {
  if (!callback) return {};
  using Clock = std::chrono::steady_clock;
  return [&callback, last = Clock::now()](std::int64_t done, std::int64_t total) mutable {
    const Clock::time_point now = Clock::now();
    if (done < total && now - last < std::chrono::milliseconds(100)) return;
    last = now;
    callback(done, total);
  };
}

}  // namespace

LoadedModel::LoadedModel(const ModelConfig& config, const WeightTable& weights, const EngineOptions& options) {
  check_options(options, config);
  loop_ = std::make_unique<EngineLoop>([&] { return make_engine(config, weights, options); });
}

std::unique_ptr<Engine> LoadedModel::make_engine(const ModelConfig& config, const WeightTable& weights,
                                                 const EngineOptions& options) {
  const ModelGraph graph = build_model(config);
  weights.check(graph);
  pool_ =
      std::make_unique<ThreadPool>(options.num_threads > 0 ? static_cast<int>(options.num_threads) : usable_threads());
  backend_ = make_backend(options.backend, *pool_, options.device);
  const Capabilities& capabilities = backend_->capabilities();
  if (options.block_size % capabilities.block_size_multiple != 0) {
    throw ConfigError(cat("block_size is ", options.block_size, ", but this backend (", capabilities.description,
                          ") needs a multiple of ", capabilities.block_size_multiple));
  }
  ProgramOptions program;
  if (options.dtype != "auto") program.weight_dtype = parse_dtype(options.dtype, "dtype");
  program.activation_dtype = options.activation_dtype == "auto"
                                 ? backend_->activation_dtype(common_weight_dtype(graph, weights, program.weight_dtype))
                                 : parse_dtype(options.activation_dtype, "activation_dtype");
  program.max_tokens = options.max_num_batched_tokens;
  program.max_sequences = options.max_num_seqs;
  program.max_logit_rows = std::min(std::max(options.max_num_seqs, kPromptLogprobRows), options.max_num_batched_tokens);
  program.block_size = options.block_size == 0 ? capabilities.default_block_size : options.block_size;
  program.time_steps = options.time_steps;
  program.on_progress = now_and_then(options.on_progress);
  EngineLimits limits{config.vocab_size, 0, options.eos_token_ids};
  plan_cache(config, options, *backend_, graph, stored_bytes(graph, weights), program, limits.max_model_len);

  auto compiled = backend_->compile(
      graph, [&](const std::string& name) -> const StoredTensor& { return weights.at(name); }, program);
  program.on_progress = nullptr;
  const cpu::Kernels& kernels = cpu::select_kernels();
  info_ = {.backend = capabilities.description,
           .isa = kernels.name,
           .activation_dtype = std::string(name(program.activation_dtype)),
           .num_threads = pool_->size(),
           .block_size = program.block_size,
           .num_blocks = program.num_blocks,
           .max_num_seqs = program.max_sequences,
           .max_model_len = limits.max_model_len,
           .max_num_batched_tokens = program.max_tokens,
           .memory = compiled->memory()};
  const SchedulerLimits scheduling{.max_tokens = program.max_tokens,
                                   .max_sequences = program.max_sequences,
                                   .max_logit_rows = program.max_logit_rows,
                                   .mixes_prefill_and_decode = capabilities.mixes_prefill_and_decode,
                                   .prefix_caching = options.enable_prefix_caching && capabilities.continues_prompts,
                                   .chunk_multiple = capabilities.chunk_multiple};
  return std::make_unique<Engine>(std::move(compiled), program, scheduling, std::move(limits), *pool_, kernels);
}

}  // namespace lb
