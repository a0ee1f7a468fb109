#include "backend/cpu/program.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "backend/cpu/step_runner.h"
#include "base/error.h"

namespace lb::cpu {

Operand choose_operand(const Kernels& kernels, DType activation_dtype, bool all_weights_bf16) {
  if (activation_dtype == DType::kF32) return Operand::kF32;
  return kernels.bf16_dot && all_weights_bf16 ? Operand::kBf16 : Operand::kF32Rounded;
}

CacheLayout cache_layout(const ModelGraph& graph, DType dtype) {
  for (const Value& value : graph.layer.values) {
    if (value.role != Role::kCache) continue;
    LB_CHECK(value.dims[1] > 0 && value.dims[1] <= kMaxHeadDim, value.dims[1]);
    return {graph.num_layers, value.dims[0], value.dims[1], dtype};
  }
  throw InternalError("a layer without a cache");
}

std::int64_t num_query_heads(const ModelGraph& graph) {
  for (const Op& op : graph.layer.ops) {
    if (const auto* attention = std::get_if<PagedAttention>(&op)) return attention->num_heads;
  }
  throw InternalError("a layer without attention");
}

std::size_t attention_scratch_bytes(std::int64_t head_dim) {
  const std::int64_t floats = attention_tile_floats(kQueryRows, padded_head_dim(head_dim)) + kQueryRows * head_dim;
  return static_cast<std::size_t>(floats) * sizeof(float);
}

CpuProgram::CpuProgram(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options,
                       const Kernels& kernels, ThreadPool& pool)
    : kernels_(kernels),
      pool_(pool),
      options_(options),
      rope_(graph.rope),
      cache_layout_(cache_layout(graph, options.activation_dtype)),
      attention_(num_query_heads(graph), cache_layout_, options, options.max_sequences, pool.size()),
      attention_of_logit_rows_(num_query_heads(graph), cache_layout_, options, options.max_logit_rows, pool.size()) {
  if (options.activation_dtype == DType::kF16) {
    throw ConfigError("activation_dtype is float16, which the cpu backend does not have; use bfloat16 or float32");
  }
  bool all_bf16 = true;
  for (const Graph* part : {&graph.embed, &graph.layer, &graph.head}) {
    for (const Value& value : part->values) {
      if (value.role != Role::kWeight || value.dims.size() != 2) continue;
      const bool in_layer = part == &graph.layer;
      for (std::int64_t layer = 0; layer < (in_layer ? graph.num_layers : 1); ++layer) {
        const DType stored = weights(in_layer ? layer_weight_name(layer, value.name) : value.name).dtype();
        all_bf16 = all_bf16 && options.weight_dtype.value_or(stored) == DType::kBF16;
      }
    }
  }
  operand_ = choose_operand(kernels, options.activation_dtype, all_bf16);
  const RowLimits limits{options.max_tokens, options.max_logit_rows};
  embed_.graph = lower(graph.embed, operand_, limits);
  layers_.graph = lower(graph.layer, operand_, limits);
  last_layer_.graph = lower_last_layer(graph.layer, operand_, limits);
  head_.graph = lower(graph.head, operand_, limits);
  pack(graph, weights, options);

  cache_ = Buffer(static_cast<std::size_t>(cache_layout_.words(options.num_blocks * options.block_size)) *
                  sizeof(std::uint32_t));
  std::int64_t arena_bytes = 0;
  for (const Stage* stage : stages()) arena_bytes = std::max(arena_bytes, stage->graph.arena_bytes);
  arena_ = Buffer(static_cast<std::size_t>(arena_bytes));
  scratch_stride_ = round_up(attention_scratch_bytes(cache_layout_.head_dim()), std::size_t{4096});
  scratch_ = Buffer(scratch_stride_ * static_cast<std::size_t>(pool.size()));

  cache_runs_.reserve(static_cast<std::size_t>(options.max_tokens));
  for (Stage* stage : stages()) {
    const std::size_t num_steps = stage->graph.steps.size();
    for (std::size_t i = 0; i < num_steps * stage->first_weight.size(); ++i) shares_.emplace_back(pool.size());
    stage->seconds.resize(num_steps);
  }
}

void CpuProgram::pack(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options) {
  std::vector<PackingRequest> requests;
  const auto request = [&requests](Stage& stage, const auto& full_name) {
    stage.first_weight.push_back(requests.size());
    for (const PackingRequest& weight : stage.graph.weights)
      requests.push_back({full_name(weight.name), weight.packing});
  };
  const auto as_is = [](const std::string& name) { return name; };
  request(embed_, as_is);
  last_layer_.first_layer = graph.num_layers - 1;
  for (std::int64_t layer = 0; layer < graph.num_layers; ++layer) {
    request(layer < last_layer_.first_layer ? layers_ : last_layer_,
            [layer](const std::string& name) { return layer_weight_name(layer, name); });
  }
  request(head_, as_is);
  packed_ =
      std::make_unique<PackedWeights>(requests, weights, options.weight_dtype, kernels_, pool_, options.on_progress);
}

CacheView CpuProgram::cache_view(std::int64_t layer, std::int64_t kv_head) const {
  return cache_layout_.view(cache_words(), layer, kv_head, options_.block_size);
}

std::uint32_t* CpuProgram::cache_words() const { return reinterpret_cast<std::uint32_t*>(cache_.data()); }

void CpuProgram::copy_blocks(std::span<const BlockCopy> copies) {
  for (const BlockCopy& copy : copies)
    cache_layout_.copy_block(cache_words(), copy.source, copy.target, options_.block_size);
}

void CpuProgram::prepare(const StepBatch& batch) {
  batch_ = &batch;
  attention_.prepare(batch, Rows::kTokens);
  attention_of_logit_rows_.prepare(batch, Rows::kLogitRows);
  find_cache_runs(batch);
  for (WorkShares& shares : shares_) shares.reset();
}

void CpuProgram::find_cache_runs(const StepBatch& batch) {
  cache_runs_.clear();
  for (std::size_t s = 0; s < batch.context_len.size(); ++s) {
    const std::int64_t end = batch.seq_begin[s + 1];
    for (std::int64_t token = batch.seq_begin[s]; token < end; token += cache_runs_.back().tokens) {
      const auto first = static_cast<std::size_t>(token);
      const std::int64_t tokens = std::min<std::int64_t>(kLanes - batch.slots[first] % kLanes, end - token);
      cache_runs_.push_back({first, tokens, token + tokens == end});
    }
  }
}

void CpuProgram::run_stage(Stage& stage, int& step_index, int member) {
  using Clock = std::chrono::steady_clock;
  for (std::size_t repetition = 0; repetition < stage.first_weight.size(); ++repetition) {
    for (std::size_t i = 0; i < stage.graph.steps.size(); ++i) {
      const Clock::time_point start = options_.time_steps ? Clock::now() : Clock::time_point{};
      const StepRunner runner(*this, stage.graph, stage.first_weight[repetition],
                              stage.first_layer + static_cast<std::int64_t>(repetition),
                              shares_[static_cast<std::size_t>(step_index++)], member);
      std::visit(runner, stage.graph.steps[i].kind);
      if (options_.time_steps && member == 0)
        stage.seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
    }
  }
}

std::span<const float> CpuProgram::run(const StepBatch& batch) {
  prepare(batch);
  pool_.run([this](int member) {
    int step_index = 0;
    for (Stage* stage : stages()) run_stage(*stage, step_index, member);
  });
  batch_ = nullptr;
  const BufferSpec& logits = head_.graph.buffers.back();
  return {reinterpret_cast<const float*>(arena_.data() + logits.offset),
          batch.logit_rows.size() * static_cast<std::size_t>(logits.ld)};
}

std::vector<Program::StepTime> CpuProgram::take_step_times() {
  std::vector<StepTime> times;  // one for each name
  for (Stage* stage : stages()) {
    for (std::size_t i = 0; i < stage->seconds.size(); ++i) {
      const std::string& name = stage->graph.steps[i].name;
      auto time = std::ranges::find(times, name, &StepTime::name);
      if (time == times.end()) time = times.insert(times.end(), {name});
      time->seconds += std::exchange(stage->seconds[i], 0.0);
    }
  }
  return times;
}

Program::Memory CpuProgram::memory() const {
  return {.weights = packed_->bytes(),
          .cache = static_cast<std::int64_t>(cache_.size()),
          .arena = static_cast<std::int64_t>(arena_.size())};
}

}  // namespace lb::cpu
