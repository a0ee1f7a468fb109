#include <span>

#include "base/error.h"
#include "base/file.h"
#include "graph/graph.h"

namespace lb {
namespace {

class Printer {
 public:
  explicit Printer(const Graph& graph) : graph_(graph) {}

  std::string operator()(const Embed& op) const { return line({{op.out}}, "Embed", {{op.table}}); }
  std::string operator()(const RmsNorm& op) const {
    return line({{op.out}}, "RmsNorm", {{op.x, op.weight}}, cat(", epsilon=", op.epsilon));
  }
  std::string operator()(const Linear& op) const {
    return op.bias == kNoValue ? line({{op.out}}, "Linear", {{op.x, op.weight}})
                               : line({{op.out}}, "Linear", {{op.x, op.weight, op.bias}});
  }
  std::string operator()(const Split& op) const { return line(op.outs, "Split", {{op.x}}); }
  std::string operator()(const Rope& op) const {
    return line({{op.q_out, op.k_out}}, "Rope", {{op.q, op.k}}, cat(", head_dim=", op.head_dim));
  }
  std::string operator()(const PagedAttention& op) const {
    return line({{op.out}}, "PagedAttention", {{op.q, op.k, op.v, op.k_cache, op.v_cache}},
                cat(", heads=", op.num_heads, ", kv_heads=", op.num_kv_heads, ", head_dim=", op.head_dim,
                    ", scale=", op.scale));
  }
  std::string operator()(const SwiGlu& op) const { return line({{op.out}}, "SwiGlu", {{op.x}}); }
  std::string operator()(const Add& op) const { return line({{op.out}}, "Add", {{op.a, op.b}}); }
  std::string operator()(const GatherRows& op) const { return line({{op.out}}, "GatherRows", {{op.x}}); }

  // "x[T, 64]", "attention.wo.weight[64, 64]"
  std::string shaped(const Value& value) const {
    std::vector<std::string> extents;
    if (value.rows != Rows::kNone) extents.emplace_back(value.rows == Rows::kTokens ? "T" : "R");
    for (const std::int64_t extent : value.dims) extents.push_back(cat(extent));
    std::string text = value.name + "[";
    for (std::size_t i = 0; i < extents.size(); ++i) text += (i == 0 ? "" : ", ") + extents[i];
    return text + "]";
  }

 private:
  std::string line(std::span<const ValueId> outs, std::string_view op, std::span<const ValueId> ins,
                   const std::string& attributes = "") const {
    std::string text = "  ";
    for (std::size_t i = 0; i < outs.size(); ++i) text += (i == 0 ? "" : ", ") + shaped(graph_[outs[i]]);
    text += cat(" = ", op, "(");
    for (std::size_t i = 0; i < ins.size(); ++i) text += (i == 0 ? "" : ", ") + graph_[ins[i]].name;
    return text + attributes + ")\n";
  }

  const Graph& graph_;
};

}  // namespace

std::string layer_weight_name(std::int64_t layer, const std::string& local_name) {
  return cat("model.layers.", layer, ".", local_name);
}

std::string to_string(const Graph& graph) {
  const Printer printer(graph);
  std::string text = "graph " + graph.name + "\n";
  const auto section = [&](Role role, std::string_view title) {
    for (const Value& value : graph.values) {
      if (value.role == role) text += cat("  ", title, " ", printer.shaped(value), "\n");
    }
  };
  section(Role::kInput, "input");
  section(Role::kWeight, "weight");
  section(Role::kCache, "cache");
  for (const Op& op : graph.ops) text += std::visit(printer, op);
  section(Role::kOutput, "output");
  return text;
}

}  // namespace lb
