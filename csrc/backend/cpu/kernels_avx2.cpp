// AVX2 with FMA and F16C. This file alone is compiled with those flags.
#include <immintrin.h>

#include "backend/cpu/coded_panel.h"
#include "backend/cpu/kernels.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::avx2 {
namespace {

#include "backend/cpu/simd_avx2.h"

// 16 registers; a lane group takes 2, a word of two elements 4. Many rows: 4 x 2 sums, 4 weights, 2 activations.
struct PairShape {
  static constexpr int kFewLimit = 2, kFewRows = 2, kFewVecs = 2;
  static constexpr int kManyRows = 4, kManyVecs = 1;
  static constexpr int kAttentionRows = 4, kAttentionVecs = 1, kAttentionFewRows = 0;
};
// 6 x 2 sums, 2 weights, 1 activation.
struct SingleShape {
  static constexpr int kFewLimit = 2, kFewRows = 2, kFewVecs = 2;
  static constexpr int kManyRows = 6, kManyVecs = 1;
  static constexpr int kAttentionRows = 6, kAttentionVecs = 1, kAttentionFewRows = 0;
};
constexpr int kStreamAheadBytes = 7680;

#include "backend/cpu/kernels_body.inc"

}  // namespace
}  // namespace lb::cpu::avx2

namespace lb::cpu {

const Kernels* avx2_kernels() {
  using namespace avx2;
  static constexpr Kernels kernels{"avx2",      false,      true,        linear_f32,   rms_norm,
                                   cache_write, attend_f32, merge_tiles, pack_rows,    code_panel,
                                   max_value,   sum_exp,    exp_weights, sum_at_least, collect_between};
  return &kernels;
}

}  // namespace lb::cpu
