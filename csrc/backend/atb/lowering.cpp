#include "backend/atb/lowering.h"

#include <map>
#include <optional>
#include <utility>

#include "backend/atb/limits.h"
#include "backend/atb/sharding.h"
#include "base/error.h"
#include "base/memory.h"

namespace lb::npu {
namespace {

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return Element::kF32;
    case DType::kF16: return Element::kF16;
    case DType::kBF16: return Element::kBF16;
  }
  return Element::kF32;
}

class Lowering {
 public:
  struct Options {
    std::string name;
    Phase phase = Phase::kDecode;
    bool input_is_sum = false;
    bool gathers_rows = false;
    std::int64_t rope_dim = 0;  // gather rows of rope tables of this width too
  };

  Lowering(const Graph& graph, const Target& target, Options options)
      : graph_(graph),
        target_(target),
        options_(std::move(options)),
        activation_(element_of(target.dtype)),
        // A factor of the angle is as exact as ATB allows beside the type of q and k.
        rope_(target.dtype == DType::kF16 && !target.is_310p ? Element::kF32 : activation_),
        places_(graph.values.size()),
        producers_(graph.values.size()),
        users_(graph.values.size()) {
    for (const Op& op : graph.ops) std::visit(Links{*this, op}, op);
  }

  GraphPlan run() {
    bind_inputs();
    for (const Op& op : graph_.ops) std::visit(*this, op);
    if (options_.rope_dim > 0) gather_rope_rows();
    bind_output();
    return number();
  }

  void operator()(const Embed& op) {
    const Slot table = weight(op.table, {whole(graph_[op.table].dims[0])}, whole(columns(op.out)), /*nz=*/false);
    place(op.out,
          node("embed", Gather{}, {table, step_input(Feed::kTokenIds)}, make(op.out, {kTokens, columns(op.out)})));
  }

  void operator()(const RmsNorm& op) {
    const Slot gamma = weight(op.weight, {whole(graph_[op.weight].dims[0])}, {0, 1}, /*nz=*/false);
    const Slot out = make(op.out, {rows(op.out), columns(op.out)});
    const Place x = place_of(op.x);
    if (x.is_sum) {
      const Slot sum = make(op.x, {rows(op.out), columns(op.x)}, "_sum");
      append(graph_[op.out].name, Norm{op.epsilon, true}, {x.slot, x.residual, gamma}, {out, sum});
      places_[index(op.x)] = Place{sum};
    } else {
      node(graph_[op.out].name, Norm{op.epsilon, false}, {x.slot, gamma}, out);
    }
    place(op.out, out);
  }

  void operator()(const Linear& op) {
    const auto& dims = graph_[op.weight].dims;
    if (graph_[op.out].rows == Rows::kLogitRows) return lm_head(op);
    std::vector<Range> out_rows{whole(dims[0])};
    Range in_columns = whole(dims[1]);
    const bool sums_ranks = is_sharded(op.x);
    if (sums_ranks) {
      const std::int64_t part = dims[1] / target_.ranks.size;
      in_columns = {target_.ranks.rank * part, part};
    } else if (const Op* user = only_user(op.out); user != nullptr && std::holds_alternative<Split>(*user)) {
      out_rows = qkv_rows(attention_of(graph_), target_.ranks);
    } else if (user != nullptr && std::holds_alternative<SwiGlu>(*user)) {
      out_rows = gate_up_rows(dims[0] / 2, target_.ranks);
    }
    const Slot out = linear(op, out_rows, in_columns, sums_ranks && target_.ranks.size > 1 ? "_part" : "");
    place(op.out, out);
    if (!sums_ranks || target_.ranks.size == 1) return;
    place(op.out, node(graph_[op.out].name + "_sum", SumRanks{}, {out}, make(op.out, {kTokens, columns(op.out)})));
  }

  void operator()(const Split& op) {
    const Heads heads = shard_heads(attention_of(graph_), target_.ranks);
    const std::int64_t dim = attention_of(graph_).head_dim;
    if (op.outs.size() != 3) unsupported(op.outs.front(), "a Split that is not of q, k and v");
    std::vector<Slot> outs;
    std::vector<std::int32_t> sizes;
    for (std::size_t i = 0; i < op.outs.size(); ++i) {
      const std::int64_t size = (i == 0 ? heads.query : heads.kv) * dim;
      sizes.push_back(static_cast<std::int32_t>(size));
      outs.push_back(make(op.outs[i], {kTokens, size}));
      place(op.outs[i], outs.back());
    }
    append("split", SplitColumns{sizes}, {use(op.x)}, outs);
  }

  void operator()(const Rope& op) {
    const Slot q = make(op.q_out, tensors_[use(op.q)].shape);
    const Slot k = make(op.k_out, tensors_[use(op.k)].shape);
    append("rope", Rotate{},
           {use(op.q), use(op.k), rope_rows(Feed::kCos, op.head_dim), rope_rows(Feed::kSin, op.head_dim),
            step_input(options_.phase == Phase::kDecode ? Feed::kContextLens : Feed::kQueryLens)},
           {q, k});
    place(op.q_out, q);
    place(op.k_out, k);
  }

  void operator()(const PagedAttention& op) {
    const Heads heads = shard_heads(op, target_.ranks);
    const View split_q{View::kSplitHeads, heads.query};
    const View split_kv{View::kSplitHeads, heads.kv};
    const Slot k_cache = cache(op.k_cache, Feed::kKeyCache, heads.kv, op.head_dim);
    const Slot v_cache = cache(op.v_cache, Feed::kValueCache, heads.kv, op.head_dim);
    append("write_cache", WriteCache{}, {use(op.k), use(op.v), k_cache, v_cache, step_input(Feed::kSlots)},
           {k_cache, v_cache}, {split_kv, split_kv, {}, {}, {}});

    const bool encodes = options_.phase == Phase::kPrefill || options_.phase == Phase::kPrefix;
    const bool rank2 = options_.phase == Phase::kPrefill && !target_.is_310p;
    const Slot out =
        rank2 ? make(op.out, {kTokens, heads.query * op.head_dim}) : make(op.out, {kTokens, heads.query, op.head_dim});
    place(op.out, out);
    std::vector<Slot> ins{use(op.q)};
    std::vector<View> views{rank2 ? View{} : split_q};
    if (options_.phase == Phase::kPrefill) {
      ins.insert(ins.end(), {use(op.k), use(op.v), step_input(Feed::kMask), step_input(Feed::kQueryLens)});
      if (!rank2) views.insert(views.end(), {split_kv, split_kv});
    } else {
      ins.insert(ins.end(), {k_cache, v_cache, step_input(Feed::kBlockTables)});
      if (options_.phase == Phase::kPrefix)
        ins.insert(ins.end(), {step_input(Feed::kMask), step_input(Feed::kQueryLens), step_input(Feed::kContextLens)});
      if (options_.phase == Phase::kExtend)
        ins.insert(ins.end(), {step_input(Feed::kContextLens), step_input(Feed::kMask), step_input(Feed::kQueryLens)});
      if (options_.phase == Phase::kDecode) ins.push_back(step_input(Feed::kContextLens));
    }
    views.resize(rank2 ? 0 : ins.size());
    if (encodes) {
      const bool prefix = options_.phase == Phase::kPrefix;
      append("attention",
             Encode{heads.query, heads.kv, op.scale, prefix || needs_high_precision(op), prefix, target_.is_310p}, ins,
             {out}, views);
    } else {
      append("attention", Page{heads.query, heads.kv, op.scale, options_.phase == Phase::kExtend}, ins, {out}, views);
    }
  }

  void operator()(const SwiGlu& op) {
    const Slot x = use(op.x);
    const std::int64_t half = tensors_[x].shape[1] / 2;
    const Slot out = make(op.out, {kTokens, half});
    place(op.out, out);
    if (!target_.is_310p) {
      node(graph_[op.out].name, SwiGluHalves{}, {x}, out);
      return;
    }
    const Slot gate = make(op.x, {kTokens, half}, "_gate");
    const Slot up = make(op.x, {kTokens, half}, "_up");
    const Slot activated = make(op.x, {kTokens, half}, "_swish");
    append("split_gate_up", SplitColumns{{static_cast<std::int32_t>(half), static_cast<std::int32_t>(half)}}, {x},
           {gate, up});
    node("swish", Swish{}, {gate}, activated);
    node(graph_[op.out].name, Multiply{}, {activated, up}, out);
  }

  // Not computed here: left to the norm that reads it.
  void operator()(const Add& op) { places_[index(op.out)] = Place{use(op.b), true, use(op.a)}; }

  void operator()(const GatherRows& op) {
    Place x = place_of(op.x);
    if (options_.gathers_rows) {
      const std::vector<std::int64_t> shape{kRows, columns(op.x)};
      x.slot = node("rows", Gather{}, {x.slot, step_input(Feed::kLogitRows)}, make(op.out, shape));
      if (x.is_sum)
        x.residual = node("residual_rows", Gather{}, {x.residual, step_input(Feed::kLogitRows)},
                          make(op.out, shape, "_residual"));
    }
    places_[index(op.out)] = x;
  }

 private:
  using Slot = std::size_t;  // of tensors_

  // Where a value of the graph is: in a tensor, or still the sum of two.
  struct Place {
    Slot slot = 0;
    bool is_sum = false;
    Slot residual = 0;
  };

  // Notes who makes and who reads each value.
  struct Links {
    Lowering& lowering;
    const Op& op;

    void link(std::initializer_list<ValueId> ins, std::span<const ValueId> outs) const {
      for (const ValueId id : ins) lowering.users_[index(id)].push_back(&op);
      for (const ValueId id : outs) lowering.producers_[index(id)] = &op;
    }
    void operator()(const Embed& o) const { link({}, {{o.out}}); }
    void operator()(const RmsNorm& o) const { link({o.x}, {{o.out}}); }
    void operator()(const Linear& o) const { link({o.x}, {{o.out}}); }
    void operator()(const Split& o) const { link({o.x}, o.outs); }
    void operator()(const Rope& o) const { link({o.q, o.k}, {{o.q_out, o.k_out}}); }
    void operator()(const PagedAttention& o) const { link({o.q, o.k, o.v}, {{o.out}}); }
    void operator()(const SwiGlu& o) const { link({o.x}, {{o.out}}); }
    void operator()(const Add& o) const { link({o.a, o.b}, {{o.out}}); }
    void operator()(const GatherRows& o) const { link({o.x}, {{o.out}}); }
  };

  static Range whole(std::int64_t extent) { return {0, extent}; }

  [[noreturn]] void unsupported(ValueId id, const char* what) const {
    throw BackendError(cat("atb backend: graph '", graph_.name, "', node '", graph_[id].name, "': cannot run ", what));
  }

  std::int64_t columns(ValueId id) const { return graph_[id].dims[0]; }

  std::int64_t rows(ValueId id) const {
    return graph_[id].rows == Rows::kLogitRows && options_.gathers_rows ? kRows : kTokens;
  }

  const Op* only_user(ValueId id) const {
    return users_[index(id)].size() == 1 && graph_[id].role != Role::kOutput ? users_[index(id)].front() : nullptr;
  }

  // Whether a rank has only its part of the columns of `id`.
  bool is_sharded(ValueId id) const {
    const Op* producer = producers_[index(id)];
    return producer != nullptr &&
           (std::holds_alternative<PagedAttention>(*producer) || std::holds_alternative<SwiGlu>(*producer));
  }

  // Keys of models with a bias on them can be large: products with queries leave the range of float16, in which the
  // default kernel multiplies.
  bool needs_high_precision(const PagedAttention& op) const {
    if (target_.dtype != DType::kF16 || target_.is_310p) return false;
    const Op* rope = producers_[index(op.k)];
    const Op* split = rope == nullptr ? nullptr : producers_[index(std::get<Rope>(*rope).k)];
    const Op* linear = split == nullptr ? nullptr : producers_[index(std::get<Split>(*split).x)];
    return linear != nullptr && std::get<Linear>(*linear).bias != kNoValue;
  }

  Slot add_tensor(Tensor tensor, Role role) {
    tensors_.push_back(std::move(tensor));
    roles_.push_back(role);
    return tensors_.size() - 1;
  }

  Slot make(ValueId id, std::vector<std::int64_t> shape, const char* suffix = "") {
    return add_tensor({graph_[id].name + suffix, activation_, std::move(shape)}, Role::kInternal);
  }

  void append(std::string name, NodeOp op, const std::vector<Slot>& ins, const std::vector<Slot>& outs,
              std::vector<View> views = {}) {
    Node node{std::move(name), std::move(op), {}, {}, std::move(views)};
    for (const Slot slot : ins) node.ins.push_back(static_cast<std::uint32_t>(slot));
    for (const Slot slot : outs) node.outs.push_back(static_cast<std::uint32_t>(slot));
    plan_.nodes.push_back(std::move(node));
  }

  Slot node(std::string name, NodeOp op, const std::vector<Slot>& ins, Slot out) {
    append(std::move(name), std::move(op), ins, {out});
    return out;
  }

  void place(ValueId id, Slot slot) { places_[index(id)] = Place{slot}; }

  const Place& place_of(ValueId id) const {
    LB_CHECK(places_[index(id)].has_value(), graph_[id].name);
    return *places_[index(id)];
  }

  Slot use(ValueId id) {
    const Place place = place_of(id);
    if (!place.is_sum) return place.slot;
    const Slot sum =
        node(graph_[id].name, Sum{}, {place.residual, place.slot}, make(id, tensors_[place.slot].shape, "_sum"));
    places_[index(id)] = Place{sum};
    return sum;
  }

  // An input that several nodes may share.
  Slot input(Tensor tensor) {
    const auto [found, is_new] = inputs_.try_emplace(tensor.feed, tensors_.size());
    if (is_new) add_tensor(std::move(tensor), Role::kInput);
    return found->second;
  }

  Slot step_input(Feed feed) {
    const auto ints = [feed, this](const char* name, std::vector<std::int64_t> shape) {
      return input({name, Element::kI32, std::move(shape), false, feed});
    };
    switch (feed) {
      case Feed::kTokenIds: return ints("token_ids", {kTokens});
      case Feed::kPositions: return ints("positions", {kTokens});
      case Feed::kSlots: return ints("slots", {kTokens});
      case Feed::kLogitRows: return ints("logit_rows", {kRows});
      case Feed::kBlockTables: return ints("block_tables", {kSequences, kTable});
      case Feed::kQueryLens: return ints("query_lens", {kSequences});
      case Feed::kContextLens: return ints("context_lens", {kSequences});
      case Feed::kMask: return mask();
      default: break;
    }
    LB_CHECK(false, static_cast<int>(feed));
  }

  Slot mask() {
    if (options_.phase == Phase::kExtend) return input({"mask", activation_, {kTokens, kContext}, false, Feed::kMask});
    if (!target_.is_310p) return input({"mask", activation_, {128, 128}, false, Feed::kMask});
    const std::int64_t side = round_up(target_.max_tokens, std::int64_t{16});
    return input({"mask", activation_, {1, side / 16, side, 16}, true, Feed::kMask});
  }

  Slot rope_rows(Feed feed, std::int64_t dim) {
    return input({feed == Feed::kCos ? "cos" : "sin", rope_, {kTokens, dim}, false, feed});
  }

  Slot cache(ValueId id, Feed feed, std::int64_t heads, std::int64_t dim) {
    std::vector<std::int64_t> shape{kBlocks, kBlockSize, heads, dim};
    if (target_.is_310p) shape = {kBlocks, heads * dim / 16, kBlockSize, 16};
    return input({graph_[id].name, activation_, std::move(shape), target_.is_310p, feed});
  }

  Slot weight(ValueId id, std::vector<Range> row_ranges, Range column_range, bool nz, std::int64_t padding = 0) {
    WeightPart part{graph_[id].name, activation_, std::move(row_ranges), column_range, padding, false, false};
    const bool is_vector = graph_[id].dims.size() == 1;
    const std::int64_t count = part.num_rows();
    // Tiles that a matrix does not fill would have to be padded on the device too: such a matrix stays as it is.
    part.nz = nz && count % 16 == 0 && column_range.count % 16 == 0;
    std::vector<std::int64_t> shape{count};
    if (!is_vector) shape.push_back(column_range.count);
    if (part.nz) shape = {1, column_range.count / 16, count, 16};
    Tensor tensor{part.name, part.element, std::move(shape), part.nz, Feed::kWeight, plan_.weights.size()};
    plan_.weights.push_back(std::move(part));
    return add_tensor(std::move(tensor), Role::kInput);
  }

  Slot linear(const Linear& op, std::vector<Range> out_rows, Range in_columns, const char* suffix,
              std::int64_t padding = 0) {
    const Slot x = use(op.x);
    std::vector<Slot> ins{x, weight(op.weight, out_rows, in_columns, target_.nz_weights, padding)};
    const std::int64_t width = plan_.weights.back().num_rows();
    if (op.bias != kNoValue) {
      ins.push_back(weight(op.bias, std::move(out_rows), {0, 1}, /*nz=*/false, padding));
      WeightPart& bias = plan_.weights.back();
      // With a float32 bias the product and the sum are one kernel.
      if (!target_.nz_weights) tensors_[ins.back()].element = bias.element = Element::kF32;
      // Partial products are summed over the ranks, the bias with them: once.
      bias.zeros = is_sharded(op.x) && target_.ranks.rank != 0;
    }
    const Slot out = make(op.out, {rows(op.out), width}, suffix);
    std::vector<View> views;
    if (tensors_[x].shape.size() == 3) {
      views.resize(ins.size());
      views.front() = {View::kMergeHeads, 0};
    }
    append(graph_[op.out].name, MatMul{op.bias != kNoValue}, ins, {out}, std::move(views));
    return out;
  }

  // Each rank computes a part of the vocabulary, the last one with rows of zeros where it does not divide.
  void lm_head(const Linear& op) {
    const std::int64_t ranks = target_.ranks.size;
    const std::int64_t vocab = graph_[op.weight].dims[0];
    const std::int64_t part = ceil_div(vocab, ranks);
    const std::int64_t begin = std::min(target_.ranks.rank * part, vocab);
    const std::int64_t count = std::min(part, vocab - begin);
    const Slot logits =
        linear(op, {{begin, count}}, whole(columns(op.x)), ranks > 1 ? "_part" : "", /*padding=*/part - count);
    place(op.out, logits);
    if (ranks == 1) return;
    const Slot gathered =
        node("gather_logits", GatherRanks{}, {logits}, make(op.out, {ranks, rows(op.out), part}, "_of_ranks"));
    place(op.out, node("interleave", Permute{{1, 0, 2}}, {gathered}, make(op.out, {rows(op.out), ranks, part})));
  }

  void gather_rope_rows() {
    const auto rows_of = [this](Feed table, const char* table_name, Feed feed, const char* name) {
      const Slot in = input({table_name, rope_, {kPositions, options_.rope_dim}, false, table});
      const Slot out = add_tensor({name, rope_, {kTokens, options_.rope_dim}, false, feed}, Role::kOutput);
      append(name, Gather{}, {in, step_input(Feed::kPositions)}, {out});
    };
    rows_of(Feed::kCosTable, "cos_table", Feed::kCos, "cos");
    rows_of(Feed::kSinTable, "sin_table", Feed::kSin, "sin");
  }

  void bind_inputs() {
    for (std::size_t i = 0; i < graph_.values.size(); ++i) {
      const Value& value = graph_.values[i];
      if (value.role != Role::kInput) continue;
      const std::vector<std::int64_t> shape{kTokens, value.dims[0]};
      Place place{input({"residual", activation_, shape, false, Feed::kResidual})};
      if (options_.input_is_sum)
        place = {input({"hidden", activation_, shape, false, Feed::kHidden}), true, place.slot};
      places_[i] = place;
    }
  }

  void bind_output() {
    for (std::size_t i = 0; i < graph_.values.size(); ++i) {
      if (graph_.values[i].role != Role::kOutput) continue;
      const Place place = place_of(ValueId{static_cast<std::int32_t>(i)});
      const auto bind = [this](Slot slot, Feed feed) {
        LB_CHECK(roles_[slot] == Role::kInternal, tensors_[slot].name);
        roles_[slot] = Role::kOutput;
        tensors_[slot].feed = feed;
      };
      const bool is_logits = graph_.values[i].rows == Rows::kLogitRows;
      if (place.is_sum) bind(place.residual, Feed::kResidual);
      bind(place.slot, is_logits ? Feed::kLogits : place.is_sum ? Feed::kHidden : Feed::kResidual);
    }
  }

  // Inputs first, then outputs, then internals, each in the order in which they came up.
  GraphPlan number() {
    plan_.name = options_.name;
    std::vector<std::uint32_t> ids(tensors_.size());
    std::uint32_t next = 0;
    const auto take = [&](Role role, std::vector<Tensor>& list) {
      for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (roles_[i] != role) continue;
        ids[i] = next++;
        list.push_back(std::move(tensors_[i]));
      }
    };
    take(Role::kInput, plan_.inputs);
    take(Role::kOutput, plan_.outputs);
    take(Role::kInternal, plan_.internals);
    for (Node& node : plan_.nodes) {
      for (std::uint32_t& id : node.ins) id = ids[id];
      for (std::uint32_t& id : node.outs) id = ids[id];
    }
    return std::move(plan_);
  }

  const Graph& graph_;
  const Target& target_;
  const Options options_;
  const Element activation_;
  const Element rope_;
  GraphPlan plan_;
  std::vector<Tensor> tensors_;
  std::vector<Role> roles_;
  std::map<Feed, Slot> inputs_;
  std::vector<std::optional<Place>> places_;
  std::vector<const Op*> producers_;
  std::vector<std::vector<const Op*>> users_;
};

}  // namespace

GraphPlan lower_embed(const Graph& graph, const Target& target, std::int64_t head_dim) {
  return Lowering(graph, target, {.name = "embed", .rope_dim = head_dim}).run();
}

GraphPlan lower_layer(const Graph& graph, const Target& target, Phase phase, bool is_first) {
  std::string name = cat(is_first ? "first_layer_" : "layer_", to_string(phase));
  return Lowering(graph, target, {.name = std::move(name), .phase = phase, .input_is_sum = !is_first}).run();
}

GraphPlan lower_head(const Graph& graph, const Target& target, bool gathers_rows) {
  return Lowering(graph, target,
                  {.name = gathers_rows ? "head_rows" : "head", .input_is_sum = true, .gathers_rows = gathers_rows})
      .run();
}

}  // namespace lb::npu
