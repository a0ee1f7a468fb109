// The layer-graph IR: what a model computes, free of how and where.
//
// A model is three graphs, {embed, layer, head}; all decoder layers share the one layer graph, whose weights have
// layer-local names. A graph holds no step metadata (positions, lengths, slots): that arrives with every step. A field
// may enter this file only if every backend reads it.
//
// Shape legend: T tokens in the step, R logit rows, E hidden, H/K query/kv heads, D head size, F ffn, V vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace lb {

enum class ValueId : std::int32_t {};

constexpr std::size_t index(ValueId id) { return static_cast<std::size_t>(id); }

enum class Role : std::uint8_t { kInput, kWeight, kCache, kOutput, kInternal };

// What the rows of an activation are. Weights and caches have no symbolic extent.
enum class Rows : std::uint8_t { kNone, kTokens, kLogitRows };

struct Value {
  std::string name;
  Role role = Role::kInternal;
  Rows rows = Rows::kNone;
  // Activation: {columns}. Weight: its stored shape. Cache: {kv_heads, head_dim} of one token.
  std::vector<std::int64_t> dims;
};

// out[t] = table[token_ids[t]]
struct Embed {
  ValueId table;  // [V, E]
  ValueId out;    // [T, E]
};

// out = x / sqrt(mean(x^2) + epsilon) * weight, per row
struct RmsNorm {
  ValueId x;
  ValueId weight;
  ValueId out;
  float epsilon = 0;
};

// out = x weight^T (+ bias)
struct Linear {
  ValueId x;       // [rows, in]
  ValueId weight;  // [out, in]
  ValueId bias;    // [out], or kNoValue
  ValueId out;     // [rows, out]
};

// Cuts the columns of x into consecutive parts.
struct Split {
  ValueId x;
  std::vector<ValueId> outs;
};

// Rotary position embedding, rotate-half layout, at the step's positions.
struct Rope {
  ValueId q;      // [T, H*D]
  ValueId k;      // [T, K*D]
  ValueId q_out;  // [T, H*D]
  ValueId k_out;  // [T, K*D]
  std::int64_t head_dim = 0;
};

// Writes k and v to the cache at the step's slots; then every token attends to the tokens of its sequence at and before
// its own position: out = softmax(scale * q k^T) v, query head h using kv head h * K / H.
struct PagedAttention {
  ValueId q;        // [T, H*D]
  ValueId k;        // [T, K*D]
  ValueId v;        // [T, K*D]
  ValueId k_cache;  // K, D
  ValueId v_cache;  // K, D
  ValueId out;      // [T, H*D]
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 0;
};

// out = silu(first half of the columns of x) * second half
struct SwiGlu {
  ValueId x;    // [rows, 2F]
  ValueId out;  // [rows, F]
};

struct Add {
  ValueId a;
  ValueId b;
  ValueId out;
};

// Picks the step's logit rows.
struct GatherRows {
  ValueId x;    // [T, columns]
  ValueId out;  // [R, columns]
};

using Op = std::variant<Embed, RmsNorm, Linear, Split, Rope, PagedAttention, SwiGlu, Add, GatherRows>;

inline constexpr ValueId kNoValue{-1};

// Made by GraphBuilder only, so one that exists is valid: ops are in execution order, each value is written once and
// before it is read, and all shapes agree.
struct Graph {
  std::string name;
  std::vector<Value> values;
  std::vector<Op> ops;

  const Value& operator[](ValueId id) const { return values[index(id)]; }
};

// cos and sin of the angle of every position and frequency, already scaled as the model's rope settings demand.
struct RopeTable {
  std::int64_t num_positions = 0;
  std::int64_t half_dim = 0;
  std::vector<float> cos;  // [num_positions, half_dim]
  std::vector<float> sin;  // [num_positions, half_dim]
};

struct ModelGraph {
  Graph embed;  // tokens -> [T, E]
  Graph layer;  // [T, E] -> [T, E]
  Graph head;   // [T, E] -> [R, V]
  std::int64_t num_layers = 0;
  RopeTable rope;
};

// The checkpoint name of a layer-local weight: "attention.wo.weight" of layer 3 is
// "model.layers.3.attention.wo.weight".
std::string layer_weight_name(std::int64_t layer, const std::string& local_name);

// One line a node, for people and golden tests.
std::string to_string(const Graph& graph);

}  // namespace lb
