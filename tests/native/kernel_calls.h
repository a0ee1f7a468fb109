// Calls of single kernels over plain arrays: packs operands as the backend does, calls one level's kernel, gives plain
// arrays back. Knows nothing of Python, so that it runs on machines that only an emulator has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"

namespace lb::testing {

// Row-major.
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<float> data;

  static Array zeros(std::vector<std::int64_t> shape);
  std::int64_t size() const { return static_cast<std::int64_t>(data.size()); }
  // Element `column` of row `row`, where a row is an index of the first extent.
  std::int64_t offset(std::int64_t row, std::int64_t column = 0) const { return row * (size() / shape[0]) + column; }
  const float* at(std::int64_t row, std::int64_t column = 0) const { return data.data() + offset(row, column); }
  float* at(std::int64_t row, std::int64_t column = 0) { return data.data() + offset(row, column); }
};

struct LinearCall {
  Array x;               // [rows, in]
  Array weight;          // [out, in]; for swiglu gate rows and then up rows
  std::string dtype;     // "coded" for bf16 in coded panels
  std::string operand;   // "bf16", "f32", or "f32r" for f32 words that hold bf16 values
  std::string epilogue;  // "store", "add" or "swiglu"
  Array bias;            // [out], or empty
  Array initial;         // [rows, out], what "add" adds to, or empty
  std::int64_t panels_per_call = 0;
  std::int64_t misalignment = 0;  // of activations and outputs, bytes
};

struct NormCall {
  Array x;
  Array weight;
  float epsilon = 0;
  std::string operand;
  std::int64_t misalignment = 0;
};

// Attention of one kv head: keys and values [context, D] are written to a cache through `block_table`, in the order of
// `write_order`; the last tokens of the context are the queries.
struct AttentionCall {
  Array q;  // [tokens, group, D]
  Array keys;
  Array values;
  Array cos;  // [context, D / 2]
  Array sin;
  std::vector<std::int32_t> block_table;
  std::int64_t block_size = 0;
  std::int64_t num_blocks = 0;
  float scale = 0;
  std::string dtype;  // of the cache
  std::string operand;
  std::vector<std::int32_t> write_order;
  float garbage = 0;  // what the cache holds before
};

Array linear(const cpu::Kernels& kernels, const LinearCall& call);        // [rows, out]
Array decoded_rows(const cpu::Kernels& kernels, const Array& weight);     // as weight, after coding it
Array rms_norm(const cpu::Kernels& kernels, const NormCall& call);        // as x
Array attention(const cpu::Kernels& kernels, const AttentionCall& call);  // as q

// `x` as a tensor of this type would hold it.
Array round_trip(const std::string& dtype, const Array& x);

}  // namespace lb::testing
