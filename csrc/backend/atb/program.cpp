#include "backend/atb/program.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "backend/atb/constants.h"
#include "backend/atb/limits.h"
#include "base/convert.h"
#include "base/error.h"

namespace lb::npu {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

const Tensor& output_of(const GraphPlan& plan, Feed feed) {
  for (const Tensor& tensor : plan.outputs) {
    if (tensor.feed == feed) return tensor;
  }
  LB_CHECK(false, plan.name, " has no such output");
}

const Tensor* find_input(const GraphPlan& plan, Feed feed) {
  for (const Tensor& tensor : plan.inputs) {
    if (tensor.feed == feed) return &tensor;
  }
  return nullptr;
}

bool is_symbolic(const Tensor& tensor) {
  return std::ranges::any_of(tensor.shape, [](std::int64_t extent) {
    return extent == kTokens || extent == kSequences || extent == kRows || extent == kContext;
  });
}

}  // namespace

AtbProgram::AtbProgram(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options,
                       const Target& target, Device& device, ThreadPool& pool)
    : device_(device),
      pool_(pool),
      options_(options),
      target_(target),
      plan_(plan_model(graph, target, options)),
      graph_sizes_(graph_launch_sizes(options)),
      num_blocks_(options.num_blocks + (graph_sizes_.empty() ? 0 : 1)),
      padded_(options, options.num_blocks),
      inputs_(options_, slab_),
      agreement_(target_, slab_),
      executor_(device) {
  guarded([&] {
    plan_memory(graph);
    slab_.allocate();
    inputs_.allocate(slab_);
    if (weights) weights_.upload(slab_, device_, weights, pool_, options.on_progress);
    upload_constants(graph);
    clear_cache();
    agreement_.prepare(slab_);
    make_operations();
    reserve_workspace();
  });
}

AtbProgram::~AtbProgram() {
  static_cast<void>(aclrtSetDevice(device_.id()));
  executor_.abandon();
  static_cast<void>(aclrtSynchronizeStream(device_.stream()));
}

void AtbProgram::plan_memory(const ModelGraph& graph) {
  const auto add_all = [this](const GraphPlan& plan, const auto& full_name) {
    std::vector<std::size_t> indices;
    for (const WeightPart& part : plan.weights) indices.push_back(weights_.add(full_name(part.name), part));
    return indices;
  };
  const auto as_is = [](const std::string& name) { return name; };
  const LayerPlans& any = plan_.layers[static_cast<std::size_t>(Phase::kDecode)];
  embed_weights_ = add_all(plan_.embed, as_is);
  for (std::int64_t layer = 0; layer < plan_.num_layers; ++layer) {
    layer_weights_.push_back(
        add_all(any.rest, [layer](const std::string& name) { return layer_weight_name(layer, name); }));
  }
  head_weights_ = add_all(plan_.head, as_is);
  weights_.plan(slab_);

  extents_[Symbol::kTokens] = options_.max_tokens;
  extents_[Symbol::kSequences] = options_.max_sequences;
  extents_[Symbol::kRows] = options_.max_logit_rows;
  extents_[Symbol::kContext] = 0;
  extents_[Symbol::kBlocks] = num_blocks_;
  extents_[Symbol::kTable] = options_.max_blocks;
  extents_[Symbol::kPositions] = graph.rope.num_positions;
  extents_[Symbol::kBlockSize] = options_.block_size;
  const auto add = [this](const Tensor& tensor) { return slab_.add(size_bytes(tensor, extents_)); };
  block_bytes_ = lb::npu::block_bytes(graph, target_, options_.block_size) / (2 * plan_.num_layers);
  for (std::int64_t layer = 0; layer < plan_.num_layers; ++layer) {
    places_.keys.push_back(slab_.add(block_bytes_ * num_blocks_));
    places_.values.push_back(slab_.add(block_bytes_ * num_blocks_));
  }
  for (std::size_t i = 0; i < 2; ++i) {
    places_.hidden[i] = add(output_of(any.rest, Feed::kHidden));
    places_.residual[i] = add(output_of(any.rest, Feed::kResidual));
  }
  places_.cos = add(output_of(plan_.embed, Feed::kCos));
  places_.sin = add(output_of(plan_.embed, Feed::kSin));
  places_.logits = add(output_of(plan_.head_rows, Feed::kLogits));
  places_.cos_table = add(*find_input(plan_.embed, Feed::kCosTable));
  places_.sin_table = add(*find_input(plan_.embed, Feed::kSinTable));
  for (const Phase phase : plan_.phases) {
    const auto index = static_cast<std::size_t>(phase);
    const Tensor* mask = find_input(plan_.layers[index].rest, Feed::kMask);
    if (mask != nullptr && !is_symbolic(*mask)) places_.mask[index] = add(*mask);
  }
  for (const Value& value : graph.head.values) {
    if (value.role == Role::kOutput) vocab_size_ = value.dims[0];
  }
  logits_.resize(static_cast<std::size_t>(options_.max_logit_rows * vocab_size_));
  logits_staging_ = PinnedMemory(size_bytes(output_of(plan_.head_rows, Feed::kLogits), extents_), "the logits");
}

void AtbProgram::upload_bytes(std::int64_t offset, const std::vector<std::byte>& bytes, const char* subject) {
  const PinnedMemory staging(static_cast<std::int64_t>(bytes.size()), subject);
  std::ranges::copy(bytes, staging.data());
  device_.upload(slab_.at(offset), bytes.size(), staging.data(), bytes.size(), subject);
  device_.synchronize(subject);
}

void AtbProgram::upload_constants(const ModelGraph& graph) {
  const RopeTable& rope = graph.rope;
  const Element element = find_input(plan_.embed, Feed::kCosTable)->element;
  upload_bytes(places_.cos_table, rope_table(rope.cos, rope.half_dim, element), "the rope table");
  upload_bytes(places_.sin_table, rope_table(rope.sin, rope.half_dim, element), "the rope table");
  for (const Phase phase : plan_.phases) {
    const GraphPlan& plan = plan_.layers[static_cast<std::size_t>(phase)].rest;
    const Tensor* mask = find_input(plan, Feed::kMask);
    if (mask == nullptr || is_symbolic(*mask)) continue;
    upload_bytes(places_.mask[static_cast<std::size_t>(phase)], triangle_mask(*mask, hiding_value(plan)), "the mask");
  }
}

// Fresh memory may hold what reads as NaN, and a kernel may multiply the unused rest of a block with 0. Zeros spread
// over the caches, which lie side by side, by copies that double.
void AtbProgram::clear_cache() {
  const std::int64_t begin = places_.keys.front();
  const std::int64_t end = places_.values.back() + block_bytes_ * num_blocks_;
  std::int64_t cleared = std::min(end - begin, std::int64_t{1} << 20);
  upload_bytes(begin, std::vector<std::byte>(static_cast<std::size_t>(cleared)), "the KV cache");
  while (cleared < end - begin) {
    const std::int64_t bytes = std::min(cleared, end - begin - cleared);
    device_.copy(slab_.at(begin + cleared), static_cast<std::size_t>(bytes), slab_.at(begin),
                 static_cast<std::size_t>(bytes), "the KV cache");
    cleared += bytes;
  }
  device_.synchronize("the KV cache");
}

std::byte* AtbProgram::address(const Tensor& tensor, const std::vector<std::size_t>& weights, std::int64_t layer,
                               Phase phase, bool is_output) const {
  const auto pair = static_cast<std::size_t>((layer + (is_output ? 1 : 0)) % 2);
  const auto at_layer = [layer](const std::vector<std::int64_t>& list) {
    return list[static_cast<std::size_t>(layer)];
  };
  switch (tensor.feed) {
    case Feed::kWeight: return weights_.at(slab_, weights[tensor.weight]);
    case Feed::kCosTable: return slab_.at(places_.cos_table);
    case Feed::kSinTable: return slab_.at(places_.sin_table);
    case Feed::kKeyCache: return slab_.at(at_layer(places_.keys));
    case Feed::kValueCache: return slab_.at(at_layer(places_.values));
    case Feed::kHidden: return slab_.at(places_.hidden[pair]);
    case Feed::kResidual: return slab_.at(places_.residual[pair]);
    case Feed::kCos: return slab_.at(places_.cos);
    case Feed::kSin: return slab_.at(places_.sin);
    case Feed::kLogits: return slab_.at(places_.logits);
    case Feed::kMask:
      return phase == Phase::kExtend ? nullptr : slab_.at(places_.mask[static_cast<std::size_t>(phase)]);
    default: return nullptr;  // of a step
  }
}

void AtbProgram::bind(BoundLaunch& bound, const GraphPlan& plan, const std::vector<std::size_t>& weights,
                      std::int64_t layer, Phase phase, const std::string& name) {
  bound.launch.name = name;
  bound.launch.operation = create_operation(plan, target_);
  const auto add = [&](atb::SVector<atb::Tensor>& list, const std::vector<Tensor>& tensors, bool is_output) {
    list.reserve(tensors.size());
    list.resize(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      atb::Tensor& out = list.at(i);
      out = atb::Tensor{};
      out.deviceData = address(tensors[i], weights, layer, phase, is_output);
      describe(tensors[i], extents_, out);
      const bool is_step_input = out.deviceData == nullptr;
      if (is_step_input || is_symbolic(tensors[i])) bound.moving.push_back({&out, &tensors[i], is_step_input});
    }
  };
  add(bound.launch.tensors.inTensors, plan.inputs, /*is_output=*/false);
  add(bound.launch.tensors.outTensors, plan.outputs, /*is_output=*/true);
}

void AtbProgram::make_operations() {
  extents_[Symbol::kContext] = options_.max_blocks * options_.block_size;
  // The embedding writes what layer 0 reads, as a layer before it would; the head reads what the last layer wrote.
  bind(embed_, plan_.embed, embed_weights_, /*layer=*/1, Phase::kDecode, "the embedding");
  bind(head_, plan_.head, head_weights_, plan_.num_layers, Phase::kDecode, "the head");
  bind(head_rows_, plan_.head_rows, head_weights_, plan_.num_layers, Phase::kDecode, "the head");
  check_outputs(plan_.embed, *embed_.launch.operation, extents_);
  check_outputs(plan_.head_rows, *head_rows_.launch.operation, extents_);
  for (const Phase phase : plan_.phases) bind_layers(layers_[static_cast<std::size_t>(phase)], phase);
  make_graph_steps();
}

void AtbProgram::bind_layers(std::vector<BoundLaunch>& launches, Phase phase) {
  const LayerPlans& plans = plan_.layers[static_cast<std::size_t>(phase)];
  launches = std::vector<BoundLaunch>(static_cast<std::size_t>(plan_.num_layers));
  for (std::size_t layer = 0; layer < launches.size(); ++layer) {
    const GraphPlan& plan = layer == 0 ? plans.first : plans.rest;
    bind(launches[layer], plan, layer_weights_[layer], static_cast<std::int64_t>(layer), phase,
         cat("layer ", layer, " (", to_string(phase), ")"));
    if (layer < 2) check_outputs(plan, *launches[layer].launch.operation, extents_);
  }
}

void AtbProgram::make_graph_steps() {
  graph_steps_ = std::vector<GraphStep>(graph_sizes_.size());
  for (std::size_t i = 0; i < graph_sizes_.size(); ++i) {
    GraphStep& step = graph_steps_[i];
    step.size = graph_sizes_[i];
    bind(step.embed, plan_.embed, embed_weights_, /*layer=*/1, Phase::kDecode, "the embedding");
    bind_layers(step.layers, Phase::kDecode);
    bind(step.head, plan_.head, head_weights_, plan_.num_layers, Phase::kDecode, "the head");
    step.embed.launch.context = step.head.launch.context = device_.graph_context();
    for (BoundLaunch& layer : step.layers) layer.launch.context = device_.graph_context();
  }
}

namespace {

// The largest step of a phase. What it would compute does not matter.
struct LargestStep {
  std::vector<std::int32_t> zeros;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> seq_begin{0};
  std::vector<std::int32_t> context_len;
  std::vector<std::int32_t> rows;
  StepBatch batch;

  LargestStep(Phase phase, const ProgramOptions& options) {
    const std::int64_t longest = options.max_blocks * options.block_size;
    const std::int64_t cached = phase == Phase::kPrefill  ? 0
                                : phase == Phase::kPrefix ? (longest > kPrefixMultiple ? kPrefixMultiple : 0)
                                : phase == Phase::kExtend ? std::min<std::int64_t>(1, longest - 1)
                                                          : longest - 1;
    const std::int64_t per_sequence = phase == Phase::kDecode ? 1 : longest - cached;
    std::int64_t left = options.max_tokens;
    while (left > 0 && std::ssize(context_len) < options.max_sequences) {
      const std::int64_t count = std::min(left, per_sequence);
      left -= count;
      for (std::int64_t i = 0; i < count; ++i) positions.push_back(static_cast<std::int32_t>(cached + i));
      seq_begin.push_back(static_cast<std::int32_t>(positions.size()));
      context_len.push_back(static_cast<std::int32_t>(cached + count));
    }
    const auto num_rows = std::min<std::int64_t>(std::ssize(positions), options.max_logit_rows);
    for (std::int64_t row = 0; row < num_rows; ++row) rows.push_back(static_cast<std::int32_t>(row));
    const std::size_t table = context_len.size() * static_cast<std::size_t>(options.max_blocks);
    zeros.resize(std::max(positions.size(), table));
    const std::span<const std::int32_t> none(zeros);
    batch = {none.first(positions.size()),
             positions,
             none.first(positions.size()),
             seq_begin,
             context_len,
             none.first(table),
             rows};
  }
};

}  // namespace

// Sets up one operation of each kind for the largest step, so that serving does not run out of memory later. With
// several ranks this is also where they meet for the first time.
void AtbProgram::reserve_workspace() {
  const auto prepare = [this](BoundLaunch& bound) {
    refresh(bound);
    executor_.prepare(bound.launch);
  };
  for (const Phase phase : plan_.phases) {
    const LargestStep step(phase, options_);
    inputs_.assemble(step.batch, phase, target_.dtype, device_, extents_);
    std::vector<BoundLaunch>& layers = layers_[static_cast<std::size_t>(phase)];
    prepare(embed_);
    for (std::size_t layer = 0; layer < std::min<std::size_t>(layers.size(), 2); ++layer) prepare(layers[layer]);
    prepare(head_rows_);
  }
  device_.synchronize("the first step");
  inputs_.synchronized();
}

void AtbProgram::refresh(BoundLaunch& bound) {
  for (const Moving& moving : bound.moving) {
    describe(*moving.plan, extents_, *moving.tensor);
    if (moving.is_step_input) inputs_.bind(moving.plan->feed, *moving.tensor);
  }
}

void AtbProgram::launch(BoundLaunch& bound) {
  refresh(bound);
  executor_.run(bound.launch);
}

// Runs f; after a failure finds out whether the device still answers. What the ranks have done is then unknown to each
// other, so that several cannot go on.
template <class F>
auto AtbProgram::guarded(F&& f) -> decltype(f()) {
  if (!broken_.empty()) {
    throw BackendError(
        cat("atb backend: the model cannot be used after an earlier error, load it again; the error was: ", broken_));
  }
  try {
    if (bound_thread_ != std::this_thread::get_id()) {
      device_.bind_thread();
      bound_thread_ = std::this_thread::get_id();
    }
    return f();
  } catch (const std::exception& error) {
    executor_.abandon();
    if (aclrtSynchronizeStream(device_.stream()) != ACL_SUCCESS || target_.ranks.size > 1) broken_ = error.what();
    inputs_.synchronized();
    throw;
  }
}

std::span<const float> AtbProgram::run(const StepBatch& batch) {
  return guarded([&] { return run_step(batch); });
}

AtbProgram::GraphStep* AtbProgram::graph_step_for(const StepBatch& batch, Phase phase) {
  if (phase != Phase::kDecode || !PaddedStep::fits(batch)) return nullptr;
  const auto fits = [&](const GraphStep& step) { return step.size >= std::ssize(batch.context_len); };
  const auto found = std::ranges::find_if(graph_steps_, fits);
  return found == graph_steps_.end() ? nullptr : &*found;
}

std::span<const float> AtbProgram::run_step(const StepBatch& batch) {
  const Clock::time_point start = Clock::now();
  const bool has_prefix = !layers_[static_cast<std::size_t>(Phase::kPrefix)].empty();
  const Phase phase = classify(batch, has_prefix);
  std::vector<BoundLaunch>& layers = layers_[static_cast<std::size_t>(phase)];
  if (layers.empty()) {
    throw BackendError(cat("atb backend: ", device_.soc(),
                           " cannot compute several tokens after cached ones; use a "
                           "max_num_batched_tokens of at least max_model_len, and no prefix caching"));
  }
  GraphStep* graph = graph_step_for(batch, phase);
  inputs_.assemble(graph == nullptr ? batch : padded_.pad(batch, graph->size), phase, target_.dtype, device_, extents_);
  seconds_[0] += seconds_since(start);

  const Clock::time_point launching = Clock::now();
  launch(graph == nullptr ? embed_ : graph->embed);
  for (BoundLaunch& layer : graph == nullptr ? layers : graph->layers) launch(layer);
  if (graph != nullptr) {
    launch(graph->head);
  } else if (!batch.logit_rows.empty()) {
    launch(batch.logit_rows.size() == batch.token_ids.size() ? head_ : head_rows_);
  }
  executor_.finish();
  seconds_[1] += seconds_since(launching);
  return batch.logit_rows.empty() ? std::span<const float>() : take_logits(batch.logit_rows.size());
}

std::span<const float> AtbProgram::take_logits(std::size_t count) {
  const Clock::time_point start = Clock::now();
  const auto num_rows = static_cast<std::int64_t>(count);
  const Tensor& tensor = output_of(plan_.head_rows, Feed::kLogits);
  const std::int64_t row_bytes =
      size_bytes(tensor, extents_) / extents_[Symbol::kRows];  // with several ranks, V rounded up
  const std::int64_t bytes = num_rows * row_bytes;
  device_.download(logits_staging_.data(), static_cast<std::size_t>(logits_staging_.size()), slab_.at(places_.logits),
                   static_cast<std::size_t>(bytes), "the logits");
  device_.synchronize("a step");
  inputs_.synchronized();
  const auto widen = [&](std::int64_t row) {
    to_floats(target_.dtype, logits_staging_.data() + row * row_bytes, vocab_size_, logits_.data() + row * vocab_size_);
  };
  if (num_rows < 4) {  // not worth waking the team
    for (std::int64_t row = 0; row < num_rows; ++row) widen(row);
  } else {
    parallel_for(pool_, num_rows, widen);
  }
  seconds_[2] += seconds_since(start);
  return std::span<const float>(logits_).first(static_cast<std::size_t>(num_rows * vocab_size_));
}

std::int64_t AtbProgram::agree(std::int64_t value) {
  return guarded([&] {
    const std::int64_t smallest = agreement_.smallest(value, device_, executor_);
    if (target_.ranks.size > 1) inputs_.synchronized();
    return smallest;
  });
}

void AtbProgram::copy_blocks(std::span<const BlockCopy> copies) {
  guarded([&] {
    const auto bytes = static_cast<std::size_t>(block_bytes_);
    for (const BlockCopy& copy : copies) {
      for (const auto* cache : {&places_.keys, &places_.values}) {
        for (const std::int64_t offset : *cache)
          device_.copy(slab_.at(offset + copy.target * block_bytes_), bytes,
                       slab_.at(offset + copy.source * block_bytes_), bytes, "a block of the KV cache");
      }
    }
  });
}

std::vector<Program::StepTime> AtbProgram::take_step_times() {
  return {{"inputs", std::exchange(seconds_[0], 0.0)},
          {"setup and launch", std::exchange(seconds_[1], 0.0)},
          {"wait and logits", std::exchange(seconds_[2], 0.0)}};
}

Program::Memory AtbProgram::memory() const {
  const std::int64_t cache = 2 * plan_.num_layers * block_bytes_ * num_blocks_;
  return {.weights = weights_.bytes(),
          .cache = cache,
          .arena = slab_.size() - weights_.bytes() - cache + executor_.workspace_bytes()};
}

}  // namespace lb::npu
