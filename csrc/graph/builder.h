// Builds a Graph: the only place with shape rules.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graph/graph.h"

namespace lb {

// Every method checks its operands and then appends one value or one node; a broken rule throws ConfigError that names
// the node, what was expected and what came. `name` becomes the name of the node's output.
class GraphBuilder {
 public:
  explicit GraphBuilder(std::string name) { graph_.name = std::move(name); }

  ValueId input(std::string name, std::int64_t columns);
  ValueId weight(std::string name, std::vector<std::int64_t> dims);
  ValueId cache(std::string name, std::int64_t num_kv_heads, std::int64_t head_dim);

  ValueId embed(std::string name, ValueId table);
  ValueId rms_norm(std::string name, ValueId x, ValueId weight, float epsilon);
  ValueId linear(std::string name, ValueId x, ValueId weight, ValueId bias = kNoValue);
  std::vector<ValueId> split(std::span<const std::string> names, ValueId x, std::span<const std::int64_t> columns);
  std::pair<ValueId, ValueId> rope(ValueId q, ValueId k, std::int64_t head_dim);
  // Sets q, k, v, caches, head counts, head size and scale from `op`; op.out is made here.
  ValueId paged_attention(std::string name, PagedAttention op);
  ValueId swiglu(std::string name, ValueId x);
  ValueId add(std::string name, ValueId a, ValueId b);
  ValueId gather_rows(std::string name, ValueId x);

  // Marks `output` and gives the graph away; the builder is empty afterwards.
  Graph finish(ValueId output);

 private:
  ValueId append(Value value);
  ValueId activation(std::string name, Rows rows, std::int64_t columns);
  const Value& activation_operand(std::string_view node, std::string_view operand, ValueId id) const;
  const Value& weight_operand(std::string_view node, std::string_view operand, ValueId id, std::size_t rank) const;
  [[noreturn]] void fail(std::string_view node, const std::string& what) const;

  Graph graph_;
};

}  // namespace lb
