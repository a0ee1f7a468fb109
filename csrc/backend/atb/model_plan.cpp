#include "backend/atb/model_plan.h"

#include <algorithm>

#include "backend/atb/limits.h"
#include "backend/atb/lowering.h"
#include "backend/atb/sharding.h"

namespace lb::npu {
namespace {

std::int64_t weight_bytes(const GraphPlan& plan) {
  std::int64_t bytes = 0;
  for (const WeightPart& part : plan.weights) bytes += part.bytes();
  return bytes;
}

// Bytes of what the nodes write, for one row: the size of the workspace if nothing in it were used twice.
std::int64_t bytes_per_row(const GraphPlan& plan) {
  std::int64_t bytes = 0;
  for (const std::vector<Tensor>* list : {&plan.outputs, &plan.internals}) {
    for (const Tensor& tensor : *list) {
      std::int64_t size = size_bytes(tensor.element);
      for (const std::int64_t extent : tensor.shape) size *= std::max<std::int64_t>(extent, 1);
      bytes += size;
    }
  }
  return bytes;
}

}  // namespace

ModelPlan plan_model(const ModelGraph& graph, const Target& target, const ProgramOptions& options) {
  check_limits(graph.layer, target, options.block_size, options.max_sequences);
  ModelPlan plan;
  plan.num_layers = graph.num_layers;
  plan.embed = lower_embed(graph.embed, target, 2 * graph.rope.half_dim);
  plan.phases = {Phase::kPrefill, Phase::kDecode};
  if (!target.is_310p) plan.phases.push_back(Phase::kExtend);
  if (has_prefix_encoder(graph.layer, target, options.block_size)) plan.phases.push_back(Phase::kPrefix);
  for (const Phase phase : plan.phases) {
    plan.layers[static_cast<std::size_t>(phase)] = {lower_layer(graph.layer, target, phase, /*is_first=*/true),
                                                    lower_layer(graph.layer, target, phase, /*is_first=*/false)};
  }
  plan.head = lower_head(graph.head, target, /*gathers_rows=*/false);
  plan.head_rows = lower_head(graph.head, target, /*gathers_rows=*/true);
  return plan;
}

std::int64_t block_bytes(const ModelGraph& graph, const Target& target, std::int64_t block_size) {
  const PagedAttention& attention = attention_of(graph.layer);
  const Heads heads = shard_heads(attention, target.ranks);
  return 2 * graph.num_layers * block_size * heads.kv * attention.head_dim * 2;
}

std::int64_t resident_bytes(const ModelPlan& plan, const ProgramOptions& options) {
  const LayerPlans& layers = plan.layers[static_cast<std::size_t>(Phase::kPrefill)];
  const std::int64_t weights =
      weight_bytes(plan.embed) + plan.num_layers * weight_bytes(layers.rest) + weight_bytes(plan.head);
  // A layer's, and the second pair of the buffers between layers.
  const std::int64_t rows = options.max_tokens * (2 * bytes_per_row(layers.rest) + bytes_per_row(plan.embed));
  return weights + rows + 2 * options.max_logit_rows * bytes_per_row(plan.head_rows);
}

std::string to_string(const ModelPlan& plan) {
  std::string text = to_string(plan.embed);
  for (const Phase phase : plan.phases) {
    const LayerPlans& layers = plan.layers[static_cast<std::size_t>(phase)];
    text += to_string(layers.first) + to_string(layers.rest);
  }
  return text + to_string(plan.head) + to_string(plan.head_rows);
}

}  // namespace lb::npu
