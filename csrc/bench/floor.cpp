#include "bench/floor.h"

#include <variant>

namespace lb::bench {
namespace {

// Bytes of all weights of a graph, and flops of its Linears for one row.
Work weights_of(const Graph& graph, DType dtype) {
  Work work;
  for (const Value& value : graph.values) {
    if (value.role != Role::kWeight) continue;
    double elements = 1;
    for (const std::int64_t extent : value.dims) elements *= static_cast<double>(extent);
    work.bytes += elements * static_cast<double>(size_bytes(dtype));
    if (value.dims.size() == 2) work.flops += 2 * elements;
  }
  return work;
}

}  // namespace

Floor::Floor(const ModelGraph& graph, DType weight_dtype, DType activation_dtype)
    : layers_(weights_of(graph.layer, weight_dtype)), head_(weights_of(graph.head, weight_dtype)) {
  const auto num_layers = static_cast<double>(graph.num_layers);
  layers_ = {layers_.bytes * num_layers, layers_.flops * num_layers};
  for (const Op& op : graph.layer.ops) {
    const auto* attention = std::get_if<PagedAttention>(&op);
    if (attention == nullptr) continue;
    const auto row = static_cast<double>(attention->head_dim) * num_layers;
    cache_bytes_ +=
        2 * row * static_cast<double>(attention->num_kv_heads) * static_cast<double>(size_bytes(activation_dtype));
    attention_flops_ += 4 * row * static_cast<double>(attention->num_heads);
  }
  for (const Value& value : graph.embed.values) {
    if (value.role == Role::kWeight)
      embedding_bytes_ += static_cast<double>(value.dims.back()) * static_cast<double>(size_bytes(weight_dtype));
  }
}

Work Floor::of(const StepBatch& batch) const {
  const auto num_tokens = static_cast<double>(batch.token_ids.size());
  const auto num_rows = static_cast<double>(batch.logit_rows.size());
  Work work{layers_.bytes + num_tokens * embedding_bytes_, num_tokens * layers_.flops + num_rows * head_.flops};
  if (num_rows > 0) work.bytes += head_.bytes;
  for (const std::int32_t context : batch.context_len) work.bytes += cache_bytes_ * context;
  for (const std::int32_t position : batch.positions) work.flops += attention_flops_ * (position + 1);
  return work;
}

}  // namespace lb::bench
