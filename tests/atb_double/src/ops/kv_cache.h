#ifndef ATB_DOUBLE_SRC_OPS_KV_CACHE_H
#define ATB_DOUBLE_SRC_OPS_KV_CACHE_H

// The two layouts of a paged cache: ND [blocks, P, K, D], and NZ [blocks, K * D / 16, P, 16].

#include "atb/base.h"

namespace atb_double {

struct CacheLayout {
  bool nz = false;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  int64_t width = 0;  // K * D

  // Position of an element of a token's row.
  int64_t index(int64_t slot, int64_t column) const {
    const int64_t block = slot / block_size;
    const int64_t row = slot % block_size;
    return block * block_size * width + (nz ? nz_index(row, column, block_size) : row * width + column);
  }
};

CacheLayout cache_layout(const TensorDesc& cache);

// Rows [0, count) of one sequence through its block table, [count, K * D] floats; throws DeviceFault for a bad block.
std::vector<float> read_cache(const View& cache, std::span<const int64_t> table, int64_t count);

}  // namespace atb_double

#endif
