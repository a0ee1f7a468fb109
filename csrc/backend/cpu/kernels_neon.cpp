// AArch64 Advanced SIMD, the baseline of that architecture.
#include <arm_neon.h>

#include "backend/cpu/coded_panel.h"
#include "backend/cpu/kernels.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::neon {
namespace {

#include "backend/cpu/simd_neon.h"

// 32 registers; a lane group takes 4, a word of two elements 8. 4 x 4 sums, 8 weights, 2 activations.
struct PairShape {
  static constexpr int kFewLimit = 2, kFewRows = 2, kFewVecs = 2;
  static constexpr int kManyRows = 4, kManyVecs = 1;
  static constexpr int kAttentionRows = 4, kAttentionVecs = 1, kAttentionFewRows = 0;
};
// 6 x 4 sums, 4 weights, 1 activation.
struct SingleShape {
  static constexpr int kFewLimit = 2, kFewRows = 2, kFewVecs = 2;
  static constexpr int kManyRows = 6, kManyVecs = 1;
  static constexpr int kAttentionRows = 6, kAttentionVecs = 1, kAttentionFewRows = 0;
};
constexpr int kStreamAheadBytes = 4096;

#include "backend/cpu/kernels_body.inc"

}  // namespace
}  // namespace lb::cpu::neon

namespace lb::cpu {

const Kernels* neon_kernels() {
  using namespace neon;
  static constexpr Kernels kernels{"neon",      false,      true,        linear_f32,   rms_norm,
                                   cache_write, attend_f32, merge_tiles, pack_rows,    code_panel,
                                   max_value,   sum_exp,    exp_weights, sum_at_least, collect_between};
  return &kernels;
}

}  // namespace lb::cpu
