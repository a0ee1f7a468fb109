#include "bench/floor.h"

#include <set>
#include <string>
#include <variant>

namespace lb::bench {
namespace {

double num_elements(const Value& value) {
  double elements = 1;
  for (const std::int64_t extent : value.dims) elements *= static_cast<double>(extent);
  return elements;
}

// All weights of a graph but those named in `counted`, which gets the names of the rest.
double new_elements(const Graph& graph, std::set<std::string>& counted) {
  double elements = 0;
  for (const Value& value : graph.values) {
    if (value.role == Role::kWeight && counted.insert(value.name).second) elements += num_elements(value);
  }
  return elements;
}

// Bytes of all weights of a graph, and flops of its Linears for one row.
Work weights_of(const Graph& graph, double bytes_per_element) {
  Work work;
  for (const Value& value : graph.values) {
    if (value.role != Role::kWeight) continue;
    work.bytes += num_elements(value) * bytes_per_element;
    if (value.dims.size() == 2) work.flops += 2 * num_elements(value);
  }
  return work;
}

}  // namespace

Floor::Floor(const ModelGraph& graph, std::int64_t weight_bytes, DType activation_dtype) {
  const auto num_layers = static_cast<double>(graph.num_layers);
  std::set<std::string> in_layer;
  std::set<std::string> outside;
  const double elements = num_layers * new_elements(graph.layer, in_layer) + new_elements(graph.embed, outside) +
                          new_elements(graph.head, outside);
  const double bytes_per_element = static_cast<double>(weight_bytes) / elements;
  double hidden = 0;
  for (const Value& value : graph.embed.values) {
    if (value.role == Role::kWeight) hidden = static_cast<double>(value.dims.back());
  }
  embedding_bytes_ = hidden * bytes_per_element;
  const Work layer = weights_of(graph.layer, bytes_per_element);
  const Work head = weights_of(graph.head, bytes_per_element);
  Work cached;  // the part of a layer that keys and values come from
  for (const Op& op : graph.layer.ops) {
    const auto* attention = std::get_if<PagedAttention>(&op);
    if (attention == nullptr) continue;
    const auto kv_columns = static_cast<double>(2 * attention->num_kv_heads * attention->head_dim);
    const double kv_elements = kv_columns * hidden;
    cached = {kv_elements * bytes_per_element, 2 * kv_elements};
    cache_bytes_ = kv_columns * static_cast<double>(size_bytes(activation_dtype));
    attention_flops_ = 4 * static_cast<double>(attention->num_heads * attention->head_dim);
  }
  layers_before_last_ = num_layers - 1;
  tokens_ = {layers_before_last_ * layer.bytes + cached.bytes, layers_before_last_ * layer.flops + cached.flops};
  rows_ = {layer.bytes - cached.bytes + head.bytes, layer.flops - cached.flops + head.flops};
}

Work Floor::of(const StepBatch& batch) const {
  const auto num_tokens = static_cast<double>(batch.token_ids.size());
  const auto num_rows = static_cast<double>(batch.logit_rows.size());
  Work work{tokens_.bytes + num_tokens * embedding_bytes_, num_tokens * tokens_.flops + num_rows * rows_.flops};
  if (num_rows > 0) work.bytes += rows_.bytes;
  const double layers_that_attend = layers_before_last_ + (num_rows > 0 ? 1 : 0);
  for (const std::int32_t context : batch.context_len) work.bytes += layers_that_attend * cache_bytes_ * context;
  for (const std::int32_t position : batch.positions)
    work.flops += layers_before_last_ * attention_flops_ * (position + 1);
  for (const std::int32_t row : batch.logit_rows)
    work.flops += attention_flops_ * (batch.positions[static_cast<std::size_t>(row)] + 1);
  return work;
}

}  // namespace lb::bench
