#include "graph/builder.h"

#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace lb {

ValueId GraphBuilder::append(Value value) {
  for (const std::int64_t extent : value.dims) {
    if (extent <= 0) fail(value.name, cat("has shape ", shape_text(value.dims), ", expected positive extents"));
  }
  for (const Value& other : graph_.values) {
    if (other.name == value.name) fail(value.name, "is defined twice");
  }
  graph_.values.push_back(std::move(value));
  return ValueId{static_cast<std::int32_t>(graph_.values.size() - 1)};
}

ValueId GraphBuilder::activation(std::string name, Rows rows, std::int64_t columns) {
  return append({std::move(name), Role::kInternal, rows, {columns}});
}

const Value& GraphBuilder::activation_operand(std::string_view node, std::string_view operand, ValueId id) const {
  if (index(id) >= graph_.values.size()) fail(node, cat(operand, " is not a value of this graph"));
  const Value& value = graph_[id];
  if (value.rows == Rows::kNone)
    fail(node, cat(operand, " '", value.name, "' is a weight or cache, expected an activation"));
  return value;
}

const Value& GraphBuilder::weight_operand(std::string_view node, std::string_view operand, ValueId id,
                                          std::size_t rank) const {
  if (index(id) >= graph_.values.size()) fail(node, cat(operand, " is not a value of this graph"));
  const Value& value = graph_[id];
  if (value.role != Role::kWeight || value.dims.size() != rank) {
    fail(node, cat(operand, " '", value.name, "' ", shape_text(value.dims), ", expected a weight of rank ", rank));
  }
  return value;
}

void GraphBuilder::fail(std::string_view node, const std::string& what) const {
  throw ConfigError(cat("graph '", graph_.name, "', node '", node, "': ", what));
}

ValueId GraphBuilder::input(std::string name, std::int64_t columns) {
  return append({std::move(name), Role::kInput, Rows::kTokens, {columns}});
}

ValueId GraphBuilder::weight(std::string name, std::vector<std::int64_t> dims) {
  return append({std::move(name), Role::kWeight, Rows::kNone, std::move(dims)});
}

ValueId GraphBuilder::cache(std::string name, std::int64_t num_kv_heads, std::int64_t head_dim) {
  return append({std::move(name), Role::kCache, Rows::kNone, {num_kv_heads, head_dim}});
}

ValueId GraphBuilder::embed(std::string name, ValueId table) {
  const std::int64_t columns = weight_operand(name, "table", table, 2).dims[1];
  const ValueId out = activation(std::move(name), Rows::kTokens, columns);
  graph_.ops.emplace_back(Embed{table, out});
  return out;
}

ValueId GraphBuilder::rms_norm(std::string name, ValueId x, ValueId weight, float epsilon) {
  const Value& input = activation_operand(name, "x", x);
  const Value& gamma = weight_operand(name, "weight", weight, 1);
  if (gamma.dims[0] != input.dims[0])
    fail(name, cat("weight has ", gamma.dims[0], " elements, x has ", input.dims[0], " columns"));
  if (!(epsilon > 0)) fail(name, cat("epsilon is ", epsilon, ", expected a positive number"));
  const ValueId out = activation(std::move(name), input.rows, input.dims[0]);
  graph_.ops.emplace_back(RmsNorm{x, weight, out, epsilon});
  return out;
}

ValueId GraphBuilder::linear(std::string name, ValueId x, ValueId weight, ValueId bias) {
  const Value& input = activation_operand(name, "x", x);
  const Value& matrix = weight_operand(name, "weight", weight, 2);
  if (matrix.dims[1] != input.dims[0])
    fail(name, cat("weight ", shape_text(matrix.dims), " takes ", matrix.dims[1], " columns, x has ", input.dims[0]));
  if (bias != kNoValue && weight_operand(name, "bias", bias, 1).dims[0] != matrix.dims[0]) {
    fail(name, cat("bias has ", graph_[bias].dims[0], " elements, weight has ", matrix.dims[0], " rows"));
  }
  const ValueId out = activation(std::move(name), input.rows, matrix.dims[0]);
  graph_.ops.emplace_back(Linear{x, weight, bias, out});
  return out;
}

std::vector<ValueId> GraphBuilder::split(std::span<const std::string> names, ValueId x,
                                         std::span<const std::int64_t> columns) {
  LB_CHECK(names.size() == columns.size() && !names.empty());
  const Rows rows = activation_operand(names[0], "x", x).rows;
  const std::int64_t sum = std::accumulate(columns.begin(), columns.end(), std::int64_t{0});
  if (sum != graph_[x].dims[0]) fail(names[0], cat("parts have ", sum, " columns in all, x has ", graph_[x].dims[0]));
  Split op{x, {}};
  for (std::size_t i = 0; i < names.size(); ++i) op.outs.push_back(activation(names[i], rows, columns[i]));
  graph_.ops.emplace_back(op);
  return op.outs;
}

std::pair<ValueId, ValueId> GraphBuilder::rope(ValueId q, ValueId k, std::int64_t head_dim) {
  const std::string name = "rope";
  for (const ValueId id : {q, k}) {
    const Value& value = activation_operand(name, "operand", id);
    if (value.dims[0] % head_dim != 0)
      fail(name, cat("'", value.name, "' has ", value.dims[0], " columns, expected a multiple of head_dim ", head_dim));
  }
  if (head_dim % 2 != 0) fail(name, cat("head_dim is ", head_dim, ", expected an even number"));
  const ValueId q_out = activation("q_rot", graph_[q].rows, graph_[q].dims[0]);
  const ValueId k_out = activation("k_rot", graph_[k].rows, graph_[k].dims[0]);
  graph_.ops.emplace_back(Rope{q, k, q_out, k_out, head_dim});
  return {q_out, k_out};
}

ValueId GraphBuilder::paged_attention(std::string name, PagedAttention op) {
  if (op.num_kv_heads <= 0 || op.num_heads % op.num_kv_heads != 0) {
    fail(name, cat(op.num_heads, " query heads cannot share ", op.num_kv_heads, " kv heads evenly"));
  }
  const auto expect_columns = [&](std::string_view operand, ValueId id, std::int64_t columns) {
    const Value& value = activation_operand(name, operand, id);
    if (value.rows != Rows::kTokens || value.dims[0] != columns) {
      fail(name, cat(operand, " '", value.name, "' has ", value.dims[0], " columns, expected ", columns));
    }
  };
  expect_columns("q", op.q, op.num_heads * op.head_dim);
  expect_columns("k", op.k, op.num_kv_heads * op.head_dim);
  expect_columns("v", op.v, op.num_kv_heads * op.head_dim);
  for (const ValueId id : {op.k_cache, op.v_cache}) {
    const Value& value = graph_[id];
    if (value.role != Role::kCache || value.dims != std::vector<std::int64_t>{op.num_kv_heads, op.head_dim}) {
      fail(name, cat("'", value.name, "' ", shape_text(value.dims), ", expected a cache ",
                     shape_text({op.num_kv_heads, op.head_dim})));
    }
  }
  if (!(op.scale > 0)) fail(name, cat("scale is ", op.scale, ", expected a positive number"));
  op.out = activation(std::move(name), Rows::kTokens, op.num_heads * op.head_dim);
  graph_.ops.emplace_back(op);
  return op.out;
}

ValueId GraphBuilder::swiglu(std::string name, ValueId x) {
  const Value& input = activation_operand(name, "x", x);
  if (input.dims[0] % 2 != 0) fail(name, cat("x has ", input.dims[0], " columns, expected an even number"));
  const ValueId out = activation(std::move(name), input.rows, input.dims[0] / 2);
  graph_.ops.emplace_back(SwiGlu{x, out});
  return out;
}

ValueId GraphBuilder::add(std::string name, ValueId a, ValueId b) {
  const Value& left = activation_operand(name, "a", a);
  const Value& right = activation_operand(name, "b", b);
  if (left.dims != right.dims || left.rows != right.rows) {
    fail(name, cat("'", left.name, "' ", shape_text(left.dims), " and '", right.name, "' ", shape_text(right.dims),
                   " differ in shape"));
  }
  const ValueId out = activation(std::move(name), left.rows, left.dims[0]);
  graph_.ops.emplace_back(Add{a, b, out});
  return out;
}

ValueId GraphBuilder::gather_rows(std::string name, ValueId x) {
  const Value& input = activation_operand(name, "x", x);
  if (input.rows != Rows::kTokens) fail(name, "x has logit rows already, expected tokens");
  const ValueId out = activation(std::move(name), Rows::kLogitRows, input.dims[0]);
  graph_.ops.emplace_back(GatherRows{x, out});
  return out;
}

Graph GraphBuilder::finish(ValueId output) {
  activation_operand("output", "value", output);
  graph_.values[index(output)].role = Role::kOutput;
  return std::exchange(graph_, {});
}

}  // namespace lb
