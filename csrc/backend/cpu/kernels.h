// The kernels of one instruction set level, as a table of functions, and the data layouts that they share.
//
// Everything is laid out in *lanes* of 16: sixteen output columns of a matrix product, or sixteen positions of a cache.
// The K dimension (what a product sums over) runs in *steps* of one 32-bit word a lane: two consecutive 16-bit
// elements, or one float. An output element is always accumulated step by step in one register lane, in f32, whatever
// the number of rows, tiles or threads: that makes results independent of batching, bit for bit.
//
// No kernel allocates, locks or throws. Pointers may alias only where a comment says so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace lb::cpu {

inline constexpr int kLanes = 16;
inline constexpr int kPanel = 32;  // output columns of a weight panel: two lane groups, one stream of memory

// Attention treats the context in tiles of this many positions, fixed by absolute position. 256 keys and values of one
// head are 64 KiB at head size 64 in bf16: they stay in the L2 cache while a block of queries passes over them.
inline constexpr int kTilePositions = 256;
inline constexpr int kRunGroups = 16;  // groups of 16 positions that the cache keeps together
// Query rows (token x query head of the same kv head) of one attention work item.
inline constexpr int kQueryRows = 48;
inline constexpr int kMaxHeadDim = 1024;

constexpr int elements_per_step(DType dtype) { return dtype == DType::kF32 ? 1 : 2; }

// How activations are stored where a matrix product reads them.
enum class Operand : std::uint8_t {
  kBf16,  // for a bf16 dot product instruction
  kF32,
  kF32Rounded,  // f32 words that hold bf16 values: bf16 activations without such an instruction
};

constexpr std::size_t size_bytes(Operand operand) { return operand == Operand::kBf16 ? 2 : 4; }

enum class Epilogue : std::uint8_t {
  kStore,   // out[f32] = y + bias
  kAdd,     // out[f32] += y + bias
  kSwiGlu,  // out[operand] = silu(gate) * up; lanes 0-15 of a panel are gate columns, 16-31 the matching up columns
};

// Rows of one matrix product call: activations of so many rows stay in the L2 cache while the panels pass over them.
inline constexpr int kMaxLinearRows = 256;

struct CodedPanel;
struct Escape;

// y = x weight^T for a range of weight panels.
// weight: [panels][in / elements_per_step][32] words, or coded panels (coded_panel.h); zero where a panel exceeds
// `out_columns`; 64-byte aligned.
struct LinearArgs {
  const void* x = nullptr;  // [rows, ldx] operand
  std::int64_t ldx = 0;     // elements, even
  std::int64_t rows = 0;    // at most kMaxLinearRows
  Operand operand = Operand::kF32;
  const std::byte* weight = nullptr;
  DType weight_dtype = DType::kF32;
  bool coded = false;
  std::int64_t in_columns = 0;   // even
  std::int64_t out_columns = 0;  // of `out`: columns from there on are not written
  std::int64_t panel_begin = 0;
  std::int64_t panel_end = 0;
  const std::byte* next = nullptr;  // weights that are probably read after these; null: the panel behind
  const float* bias = nullptr;      // [32 * panels] or null
  Epilogue epilogue = Epilogue::kStore;
  void* out = nullptr;  // [rows, ldo]
  std::int64_t ldo = 0;
};

struct NormArgs {
  const float* x = nullptr;       // [columns]
  const float* weight = nullptr;  // [columns]
  std::int64_t columns = 0;
  float epsilon = 0;
  Operand operand = Operand::kF32;
  void* out = nullptr;  // [columns]
};

// One kv head of one layer's cache. Positions are grouped by 16; a block holds block_size / 16 groups, and kRunGroups
// groups lie together in a run. Of one group, this head's words are
//   keys:   [head_dim / e][16], a word being e = elements_per_step consecutive elements of one position
//   values: [padded_dim / 16][16 / e][16], a word being one element of e consecutive positions
// See CacheLayout.
struct CacheView {
  std::uint32_t* keys = nullptr;    // of group 0
  std::uint32_t* values = nullptr;  // of group 0
  std::int64_t key_words = 0;       // of a group; the next group of the run follows
  std::int64_t value_words = 0;     // of a group
  std::int64_t run_stride = 0;      // words from one run to the next, for keys and for values
  std::int64_t block_size = 0;
  std::int64_t head_dim = 0;
  std::int64_t padded_dim = 0;  // padded_head_dim(head_dim); the padding is never read into a result
  DType dtype = DType::kF32;    // kBF16 or kF32
};

// Words from the keys, or the values, of group 0 to those of another, `group_words` being key_words or value_words.
constexpr std::int64_t group_offset(const CacheView& cache, std::int64_t group, std::int64_t group_words) {
  return group / kRunGroups * cache.run_stride + group % kRunGroups * group_words;
}

// What one sequence has in a CacheView.
struct HeadContext {
  CacheView cache;
  const std::int32_t* block_table = nullptr;
  std::int64_t length = 0;  // positions
  std::int64_t begin = 0;   // the first position that a piece of work reads, a multiple of kTilePositions
};

struct RopeRow {
  const float* cos = nullptr;  // [head_dim / 2]
  const float* sin = nullptr;
};

// Writes tokens of one sequence and kv head, whose slots follow one another in one group of positions, into the cache:
// keys rotated by `rope`, values as they are.
struct CacheWriteArgs {
  CacheView cache;
  const float* key = nullptr;  // [tokens, ldk]
  std::int64_t ldk = 0;
  const float* value = nullptr;  // [tokens, ldv]
  std::int64_t ldv = 0;
  RopeRow rope;           // of the first token; rows of head_dim / 2
  std::int64_t slot = 0;  // of the first token
  std::int64_t tokens = 1;
  bool last_of_sequence = false;  // then the partner of an unpaired last value is cleared, because attention reads it
};

// Attention of rows [row_begin, row_end) of one sequence and kv head over its context. Row r is query head r % group of
// token r / group; token i has position first_position + i. At most kQueryRows rows.
struct AttentionArgs {
  HeadContext context;
  HeadContext next;          // what the thread will probably read behind this one, or of length 0
  const float* q = nullptr;  // first query head of the group, first token of the sequence; not rotated
  std::int64_t ldq = 0;
  RopeRow rope;  // of position 0; rows of head_dim / 2
  std::int64_t first_position = 0;
  std::int64_t group = 0;
  std::int64_t row_begin = 0;
  std::int64_t row_end = 0;
  float scale = 0;
  Operand operand = Operand::kF32;
  void* out = nullptr;  // operand, as q is laid out
  std::int64_t ldo = 0;
  std::byte* scratch = nullptr;  // attention_scratch_bytes(), 64-byte aligned, private to the thread
  // The tiles of a long context can be shared out among threads. With tile >= 0 and the rows of one token, attend()
  // computes that tile alone, into `tiles`; merge_tiles() then makes `out` of all num_tiles, as attend() would have.
  std::int64_t tile = -1;
  std::int64_t num_tiles = 0;
  float* tiles = nullptr;  // [num_tiles][attention_tile_floats()], 64-byte aligned
};

// Values of a head are kept in whole lane groups.
constexpr std::int64_t padded_head_dim(std::int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

std::size_t attention_scratch_bytes(std::int64_t head_dim);

// What is known of `rows` query rows after some tiles: sums of weighted values, maxima of scores, sums of weights.
constexpr std::int64_t attention_tile_floats(std::int64_t rows, std::int64_t padded_dim) {
  return (rows * (padded_dim + 2) + kLanes - 1) / kLanes * kLanes;
}

// What streams from memory is fetched into the L1 cache of a core where that has room for it beside the activations,
// and into its L2 cache elsewhere.
extern const bool streams_into_l1;

// The functions of one instruction set level.
struct Kernels {
  const char* name;
  bool bf16_dot;  // linear and attend multiply bf16 operands directly
  bool decodes;   // fast enough for coded panels to be worth it

  void (*linear)(const LinearArgs& args);
  void (*rms_norm)(const NormArgs& args);
  void (*cache_write)(const CacheWriteArgs& args);
  void (*attend)(const AttentionArgs& args);
  void (*merge_tiles)(const AttentionArgs& args);

  // Transposes 16 rows of `steps` words into one lane group of a panel: target[step * 32 + lane] = rows[lane][step].
  // Rows from `valid_rows` on are taken as zero. row_stride in words.
  void (*pack_rows)(const std::uint32_t* rows, std::int64_t row_stride, int valid_rows, std::int64_t steps,
                    std::uint32_t* target);

  // Codes the elements [steps][32][2] of a bf16 panel into `panel` and what follows it. `escapes` has room for `room`
  // of them; returns how many there are, or more than `room` as soon as there are.
  std::int64_t (*code_panel)(const std::uint16_t* elements, std::int64_t steps, CodedPanel* panel, Escape* escapes,
                             std::int64_t room);

  // Over a row of logits, n >= 1.
  float (*max_value)(const float* x, std::int64_t n);
  // sum of exp((x[i] - maximum) * factor), in a fixed order
  float (*sum_exp)(const float* x, std::int64_t n, float maximum, float factor);
  // weights[i] = exp((x[i] - maximum) * factor), or 0 where that is less than e^-87.
  void (*exp_weights)(const float* x, std::int64_t n, float maximum, float factor, float* weights);
  // Sum of all x[i] >= threshold, in a fixed order.
  double (*sum_at_least)(const float* x, std::int64_t n, float threshold);
  // Ascending indices of all x[i] with low <= x[i] < high into `indices` (room for n); returns how many.
  std::int64_t (*collect_between)(const float* x, std::int64_t n, float low, float high, std::int32_t* indices);
};

// The levels that were compiled in; null where the CPU architecture has no such level.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512bf16_kernels();
const Kernels* neon_kernels();

}  // namespace lb::cpu
