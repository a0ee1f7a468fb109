// What ATB is told to compute, as plain data: tensors, nodes and weights of a graph operation. No CANN header is needed
// to make or read it, so lowering is tested, and its result printed, on any machine.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "base/dtype.h"

namespace lb::npu {

// How the attention of a step is computed; a step of any kind of sequences fits the third.
enum class Phase : std::uint8_t {
  kPrefill,  // whole prompts: SelfAttention over the tokens of the step
  kPrefix,   // prompts whose first part is cached, in whole multiples of 128 tokens: SelfAttention over the cache
  kExtend,   // any number of tokens after any context: PagedAttention with a mask
  kDecode,   // one token each: PagedAttention
};
inline constexpr std::size_t kNumPhases = 4;

const char* to_string(Phase phase);

// This process among those that share a model.
struct Ranks {
  std::int64_t rank = 0;
  std::int64_t size = 1;
};

// What graphs are lowered for.
struct Target {
  DType dtype = DType::kF16;  // of activations, matrices and the cache
  Ranks ranks;
  std::string communication = "lccl";  // between ranks: "lccl" or "hccl"
  bool nz_weights = false;             // matrices in 16 x 16 tiles, FRACTAL_NZ
  bool is_310p = false;                // a chip with rules of its own, see lowering.cpp
  std::int64_t max_tokens = 0;         // of a step; the size of a mask where it must cover a whole prompt
};

enum class Element : std::uint8_t { kF32, kF16, kBF16, kI32 };

constexpr std::int64_t size_bytes(Element element) {
  return element == Element::kF32 || element == Element::kI32 ? 4 : 2;
}

// Of numbers that are no integers.
DType dtype_of(Element element);

// What a graph's input or output is bound to when it runs.
enum class Feed : std::uint8_t {
  kWeight,    // of the layer
  kCosTable,  // [positions, D]
  kSinTable,
  kKeyCache,  // of the layer
  kValueCache,
  kHidden,  // the activations between graphs: a sum of two terms, or the second alone
  kResidual,
  kCos,  // rows of the tables, of this step's positions
  kSin,
  kLogits,
  kMask,         // triangle, or one row a token
  kTokenIds,     // [T] on the device
  kPositions,    // [T]
  kSlots,        // [T]
  kLogitRows,    // [R]
  kBlockTables,  // [S, max_blocks]
  kQueryLens,    // [S] on the device and on the host
  kContextLens,  // [S] on the device and on the host
};
inline constexpr std::size_t kNumFeeds = 18;

// Extents that are known when a step runs.
enum Symbol : std::int64_t {
  kTokens = -1,     // T
  kSequences = -2,  // S
  kRows = -3,       // R
  kContext = -4,    // of the longest sequence of the step
  kBlocks = -5,     // of the cache
  kTable = -6,      // width of a block table
  kPositions = -7,  // rows of the rope tables
  kBlockSize = -8,
};

struct Tensor {
  std::string name;
  Element element = Element::kF16;
  std::vector<std::int64_t> shape;  // extents and symbols
  bool nz = false;                  // format FRACTAL_NZ; the shape is that of the tiles
  Feed feed = Feed::kWeight;        // meaningless for what is internal to the graph
  std::size_t weight = 0;           // index, where the feed is a weight
};

// The operations, with the parameters that differ from one use to another. Operands are in ATB's order.
struct Gather {};
struct Norm {
  float epsilon = 0;
  bool adds_residual = false;  // PRENORM: norm of the sum of two inputs, which is a second output
};
struct MatMul {
  bool bias = false;
};
struct SplitColumns {
  std::vector<std::int32_t> sizes;
};
struct Rotate {};
struct WriteCache {};
// SelfAttention PA_ENCODER or PREFIX_ENCODER
struct Encode {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  float scale = 0;
  bool high_precision = false;
  bool prefix = false;
  bool full_mask = false;  // a mask that covers whole prompts instead of a 128 x 128 triangle
};
// PagedAttention, plain or SPEC
struct Page {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  float scale = 0;
  bool several_queries = false;
};
struct SwiGluHalves {};
struct Swish {};
struct Multiply {};
struct Sum {};
struct Permute {
  std::vector<std::int32_t> order;
};
struct SumRanks {};
struct GatherRanks {};

using NodeOp = std::variant<Gather, Norm, MatMul, SplitColumns, Rotate, WriteCache, Encode, Page, SwiGluHalves, Swish,
                            Multiply, Sum, Permute, SumRanks, GatherRanks>;

// How a node sees an input: as it is, [T, heads * D] as [T, heads, D], or the other way round.
struct View {
  enum Kind : std::uint8_t { kSame, kSplitHeads, kMergeHeads } kind = kSame;
  std::int64_t heads = 0;  // of kSplitHeads
};

struct Node {
  std::string name;
  NodeOp op;
  std::vector<std::uint32_t> ins;  // tensor ids: inputs, then outputs, then internals
  std::vector<std::uint32_t> outs;
  std::vector<View> views;  // one per input, or empty
};

// Elements [begin, begin + count) of one dimension.
struct Range {
  std::int64_t begin = 0;
  std::int64_t count = 0;

  friend bool operator==(const Range&, const Range&) = default;
};

// The part of a stored weight that this rank keeps, and how.
struct WeightPart {
  std::string name;  // the graph's own
  Element element = Element::kF16;
  std::vector<Range> rows;   // one after another
  Range columns;             // {0, 1} for a vector
  std::int64_t padding = 0;  // rows of zeros after them
  bool zeros = false;        // all zeros: another rank has it
  bool nz = false;

  friend bool operator==(const WeightPart&, const WeightPart&) = default;
  std::int64_t num_rows() const {
    std::int64_t count = padding;
    for (const Range& range : rows) count += range.count;
    return count;
  }
  std::int64_t bytes() const { return num_rows() * columns.count * size_bytes(element); }
};

// A graph operation.
struct GraphPlan {
  std::string name;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<Tensor> internals;
  std::vector<Node> nodes;
  std::vector<WeightPart> weights;

  const Tensor& tensor(std::uint32_t id) const {
    if (id < inputs.size()) return inputs[id];
    if (id < inputs.size() + outputs.size()) return outputs[id - inputs.size()];
    return internals[id - inputs.size() - outputs.size()];
  }
};

// One line a tensor and a node, for people and golden tests.
std::string to_string(const GraphPlan& plan);

}  // namespace lb::npu
