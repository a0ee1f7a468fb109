#include "backend/cpu/lowering.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <span>

#include "base/error.h"
#include "graph/arena.h"

namespace lb::cpu {
namespace {

constexpr std::int64_t kAlignment = 64;

// Rows of a buffer lie an odd number of cache lines apart, so that the rows of a tile do not all fall into the same
// sets of the L1 cache (which repeat every 4096 bytes).
std::int64_t padded_ld(std::int64_t columns, std::int64_t element_bytes) {
  const std::int64_t line = kAlignment / element_bytes;
  const std::int64_t lines = ceil_div(columns, line);
  return (lines + 1 - lines % 2) * line;
}

// What is lowered of a graph: all of it or, of the last layer, first what leads to the cache and then, for the logit
// rows, the rest.
enum class Pass : std::uint8_t { kWhole, kCache, kLogitRows };

class Lowering {
 public:
  Lowering(const Graph& graph, Operand operand, const RowLimits& limits)
      : graph_(graph), operand_(operand), limits_(limits) {
    places_.resize(graph.values.size());
    for (std::size_t i = 0; i < graph.ops.size(); ++i) {
      for (const ValueId id : inputs_of(graph.ops[i])) users_[index(id)].push_back(i);
    }
  }

  LoweredGraph run(std::initializer_list<Pass> passes) {
    place_residual();
    for (const Pass pass : passes) {
      pass_ = pass;
      fused_.assign(graph_.ops.size(), false);
      for (std::size_t i = 0; i < graph_.ops.size(); ++i) {
        if (!fused_[i]) std::visit(*this, graph_.ops[i]);
        if (pass == Pass::kCache && std::holds_alternative<PagedAttention>(graph_.ops[i])) break;
      }
    }
    plan();
    return std::move(out_);
  }

  void operator()(const Embed& op) {
    place(op.out, {kResidual, 0});
    append(op.out, EmbedStep{weight(op.table, Packing::kPanels), {kResidual, 0}});
  }

  void operator()(const RmsNorm& op) {
    const View x = use(op.x);
    const View out = make(op.out, static_cast<std::int64_t>(size_bytes(operand_)));
    append(op.out, NormStep{x, weight(op.weight, Packing::kVector), out, columns(op.out), op.epsilon, rows(op.out)});
  }

  void operator()(const Linear& op) {
    LinearStep step;
    step.x = use(op.x);
    step.rows = rows(op.out);
    step.bias = op.bias == kNoValue ? -1 : weight(op.bias, Packing::kVector);
    const std::optional<std::size_t> user = only_user(op.out);
    if (user && std::holds_alternative<SwiGlu>(graph_.ops[*user]) && op.bias == kNoValue) {
      const SwiGlu& swiglu = std::get<SwiGlu>(graph_.ops[*user]);
      fused_[*user] = true;
      step.weight = weight(op.weight, Packing::kGateUpPanels);
      step.epilogue = Epilogue::kSwiGlu;
      step.out_columns = columns(swiglu.out);
      step.out = make(swiglu.out, static_cast<std::int64_t>(size_bytes(operand_)));
    } else if (user && std::holds_alternative<Add>(graph_.ops[*user])) {
      const Add& add = std::get<Add>(graph_.ops[*user]);
      const ValueId other = add.a == op.out ? add.b : add.a;
      if (users_[index(other)].back() != *user)
        unsupported(op.out, "an Add to a value that is still needed afterwards");
      if (pass_ == Pass::kCache) unsupported(op.out, "an Add before attention");
      fused_[*user] = true;
      step.weight = weight(op.weight, Packing::kPanels);
      step.epilogue = Epilogue::kAdd;
      step.out_columns = columns(op.out);
      step.out = use(other);
      place(add.out, step.out);
    } else {
      step.weight = weight(op.weight, Packing::kPanels);
      step.out_columns = columns(op.out);
      step.out = make(op.out, sizeof(float));
      if (user) leave_out_columns(graph_.ops[*user], step);
    }
    append(op.out, step);
  }

  void operator()(const Split& op) {
    View part = use(op.x);
    for (const ValueId out : op.outs) {
      place(out, part);
      part.column += columns(out);
    }
  }

  // The rotation happens where rotated values are read: in the cache write and in attention.
  void operator()(const Rope& op) {
    place(op.q_out, use(op.q));
    place(op.k_out, use(op.k));
    rotated_[index(op.q_out)] = rotated_[index(op.k_out)] = true;
  }

  void operator()(const PagedAttention& op) {
    if (!rotated_[index(op.q)] || !rotated_[index(op.k)] || rotated_[index(op.v)]) {
      unsupported(op.out, "PagedAttention unless q and k, and not v, come from Rope");
    }
    if (pass_ != Pass::kLogitRows) append(op.k, CacheStep{use(op.k), use(op.v), op.num_kv_heads, op.head_dim}, "cache");
    if (pass_ == Pass::kCache) {
      append(op.out, GatherStep{{kResidual, 0}, residual_columns_}, "logit_rows");
      return;
    }
    const View q = use(op.q);
    const View out = make(op.out, static_cast<std::int64_t>(size_bytes(operand_)));
    append(op.out, AttentionStep{q, out, op.num_heads, op.num_kv_heads, op.head_dim, op.scale, rows(op.out)},
           "attention");
  }

  void operator()(const SwiGlu& op) { unsupported(op.out, "SwiGlu of anything but a Linear without bias"); }
  void operator()(const Add& op) { unsupported(op.out, "Add of anything but a Linear"); }

  // The last layer has left the logit rows alone.
  void operator()(const GatherRows& op) {
    if (use(op.x).buffer != kResidual) unsupported(op.out, "GatherRows of anything but the output of the layers");
    place(op.out, use(op.x));
  }

 private:
  static std::vector<ValueId> inputs_of(const Op& op) {
    struct Inputs {
      std::vector<ValueId> operator()(const Embed& o) { return {o.table}; }
      std::vector<ValueId> operator()(const RmsNorm& o) { return {o.x}; }
      std::vector<ValueId> operator()(const Linear& o) { return {o.x}; }
      std::vector<ValueId> operator()(const Split& o) { return {o.x}; }
      std::vector<ValueId> operator()(const Rope& o) { return {o.q, o.k}; }
      std::vector<ValueId> operator()(const PagedAttention& o) { return {o.q, o.k, o.v}; }
      std::vector<ValueId> operator()(const SwiGlu& o) { return {o.x}; }
      std::vector<ValueId> operator()(const Add& o) { return {o.a, o.b}; }
      std::vector<ValueId> operator()(const GatherRows& o) { return {o.x}; }
    };
    return std::visit(Inputs{}, op);
  }

  [[noreturn]] void unsupported(ValueId id, const char* what) const {
    throw BackendError(cat("cpu backend: graph '", graph_.name, "', node '", graph_[id].name, "': cannot run ", what));
  }

  std::int64_t columns(ValueId id) const { return graph_[id].dims[0]; }

  Rows rows(ValueId id) const { return pass_ == Pass::kLogitRows ? Rows::kLogitRows : graph_[id].rows; }

  // Of a product whose first columns are the queries, only the logit rows need those, and only the cache the others.
  void leave_out_columns(const Op& user, LinearStep& step) const {
    const auto* split = std::get_if<Split>(&user);
    if (pass_ == Pass::kWhole || split == nullptr) return;
    const std::optional<std::size_t> next = only_user(split->outs.front());
    const Rope* rope = next ? std::get_if<Rope>(&graph_.ops[*next]) : nullptr;
    if (rope == nullptr || rope->q != split->outs.front()) return;
    const std::int64_t query_columns = columns(rope->q);
    if (pass_ == Pass::kCache)
      step.first_column = query_columns / kPanel * kPanel;
    else
      step.out_columns = query_columns;
  }

  std::optional<std::size_t> only_user(ValueId id) const {
    const std::vector<std::size_t>& users = users_[index(id)];
    if (users.size() != 1 || graph_[id].role == Role::kOutput) return std::nullopt;
    return users.front();
  }

  // Buffer 0: the graph's input or, for the embedding, its output.
  void place_residual() {
    for (std::size_t i = 0; i < graph_.values.size(); ++i) {
      const Value& value = graph_.values[i];
      if (value.role != Role::kInput && value.role != Role::kOutput) continue;
      if (value.role == Role::kInput) places_[i] = View{kResidual, 0};
      if (value.rows == Rows::kTokens) residual_columns_ = value.dims[0];
    }
    out_.buffers.push_back({padded_ld(residual_columns_, sizeof(float)), sizeof(float), 0});
    lifetimes_.push_back({0, 0, 0});
  }

  int weight(ValueId id, Packing packing) {
    const auto known = std::ranges::find(out_.weights, graph_[id].name, &PackingRequest::name);
    const auto index = static_cast<int>(known - out_.weights.begin());
    if (known == out_.weights.end()) out_.weights.push_back({graph_[id].name, packing});
    return index;
  }

  void place(ValueId id, View view) { places_[index(id)] = view; }

  View use(ValueId id) {
    LB_CHECK(places_[index(id)].has_value(), graph_[id].name);
    const View view = *places_[index(id)];
    lifetimes_[static_cast<std::size_t>(view.buffer)].last = static_cast<int>(out_.steps.size());
    return view;
  }

  View make(ValueId id, std::int64_t element_bytes) {
    const Value& value = graph_[id];
    const bool is_output = value.role == Role::kOutput;
    const std::int64_t ld = is_output ? value.dims[0] : padded_ld(value.dims[0], element_bytes);
    const std::int64_t most = rows(id) == Rows::kTokens ? limits_.tokens : limits_.logit_rows;
    const auto now = static_cast<int>(out_.steps.size());
    out_.buffers.push_back({ld, element_bytes, 0});
    lifetimes_.push_back({most * ld * element_bytes, now, now});
    place(id, {static_cast<int>(out_.buffers.size()) - 1, 0});
    return *places_[index(id)];
  }

  void append(ValueId id, StepKind kind, std::string name = "") {
    out_.steps.push_back({name.empty() ? graph_[id].name : std::move(name), std::move(kind)});
  }

  // The residual stream lies first, and is what a graph of tokens must end in; the other buffers share what follows as
  // their lifetimes allow.
  void plan() {
    for (std::size_t i = 0; i < graph_.values.size(); ++i) {
      const Value& value = graph_.values[i];
      if (value.role != Role::kOutput || value.rows != Rows::kTokens) continue;
      if (!places_[i] || places_[i]->buffer != kResidual)
        unsupported(ValueId{static_cast<std::int32_t>(i)}, "an output that is not the input with sums added to it");
    }
    const BufferSpec& residual = out_.buffers[kResidual];
    const std::int64_t start = round_up(limits_.tokens * residual.ld * residual.element_bytes, kAlignment);
    const ArenaPlan plan = plan_arena(std::span(lifetimes_).subspan(1), kAlignment);
    for (std::size_t i = 0; i < plan.offsets.size(); ++i) out_.buffers[i + 1].offset = start + plan.offsets[i];
    out_.arena_bytes = start + plan.bytes;
  }

  const Graph& graph_;
  const Operand operand_;
  const RowLimits limits_;
  Pass pass_ = Pass::kWhole;
  std::int64_t residual_columns_ = 0;
  LoweredGraph out_;
  std::vector<Lifetime> lifetimes_;
  std::vector<std::optional<View>> places_;
  std::vector<std::vector<std::size_t>> users_{graph_.values.size()};
  std::vector<bool> rotated_ = std::vector<bool>(graph_.values.size());
  std::vector<bool> fused_ = std::vector<bool>(graph_.ops.size());
};

}  // namespace

LoweredGraph lower(const Graph& graph, Operand operand, const RowLimits& limits) {
  return Lowering(graph, operand, limits).run({Pass::kWhole});
}

LoweredGraph lower_last_layer(const Graph& graph, Operand operand, const RowLimits& limits) {
  return Lowering(graph, operand, limits).run({Pass::kCache, Pass::kLogitRows});
}

}  // namespace lb::cpu
