// From a layer graph to a list of steps over buffers.
//
// Lowering fuses what the kernels can do in one pass: a Linear with the SwiGlu or the Add that alone uses it, Rope with
// the cache write and the attention that read it. Split is a view. Nothing here allocates memory for tensors.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cpu/packing.h"
#include "graph/graph.h"

namespace lb::cpu {

// An activation buffer: `ld` elements a row. Its offset in the arena is known after planning.
struct BufferSpec {
  std::int64_t ld = 0;
  std::int64_t element_bytes = 4;
  std::int64_t offset = 0;  // bytes
};

// Columns of a buffer.
struct View {
  int buffer = 0;
  std::int64_t column = 0;
};

struct EmbedStep {
  int table = 0;  // index of a weight
  View out;
};

struct NormStep {
  View x;
  int weight = 0;
  View out;
  std::int64_t columns = 0;
  float epsilon = 0;
  Rows rows = Rows::kTokens;
};

struct LinearStep {
  View x;
  int weight = 0;
  int bias = -1;
  Epilogue epilogue = Epilogue::kStore;
  View out;
  std::int64_t first_column = 0;  // of the matrix's, a panel's first
  std::int64_t out_columns = 0;   // those from there on are not computed
  Rows rows = Rows::kTokens;
};

struct CacheStep {
  View k;
  View v;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
};

struct AttentionStep {
  View q;
  View out;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 0;
  Rows rows = Rows::kTokens;
};

// Moves the logit rows of a buffer to its front.
struct GatherStep {
  View x;
  std::int64_t columns = 0;
};

using StepKind = std::variant<EmbedStep, NormStep, LinearStep, CacheStep, AttentionStep, GatherStep>;

struct Step {
  std::string name;
  StepKind kind;
};

struct LoweredGraph {
  std::vector<Step> steps;
  std::vector<BufferSpec> buffers;
  std::vector<PackingRequest> weights;  // by the graph's own names
  std::int64_t arena_bytes = 0;
};

// Buffer 0 of every lowered graph is the residual stream, f32 [T, E], at offset 0 of the arena: graphs hand it to one
// another in place. The last layer leaves [R, E] of it to the head. The last buffer of the head graph, f32 [R, V] with
// ld V, is its output.
inline constexpr int kResidual = 0;

// Row counts that buffers are planned for.
struct RowLimits {
  std::int64_t tokens = 0;
  std::int64_t logit_rows = 0;
};

// Throws BackendError for a graph whose ops cannot be fused as the kernels need.
LoweredGraph lower(const Graph& graph, Operand operand, const RowLimits& limits);

// The layer graph for the last layer, of whose outputs only the logit rows are wanted. All tokens get keys and values;
// then the logit rows are gathered, and what is left is computed for them alone. Its weights are lower()'s.
LoweredGraph lower_last_layer(const Graph& graph, Operand operand, const RowLimits& limits);

}  // namespace lb::cpu
