// The portable level: plain C++ that any compiler vectorises as far as its baseline allows.
#include "backend/cpu/coded_panel.h"
#include "backend/cpu/kernels.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::scalar {
namespace {

#include "backend/cpu/simd_scalar.h"

struct PairShape {
  static constexpr int kFewLimit = 1, kFewRows = 1, kFewVecs = 2;
  static constexpr int kManyRows = 2, kManyVecs = 2;
  static constexpr int kAttentionRows = 2, kAttentionVecs = 1, kAttentionFewRows = 0;
};
using SingleShape = PairShape;
constexpr int kStreamAheadBytes = 0;

#include "backend/cpu/kernels_body.inc"

}  // namespace
}  // namespace lb::cpu::scalar

namespace lb::cpu {

const Kernels* scalar_kernels() {
  using namespace scalar;
  static constexpr Kernels kernels{"scalar",    false,      false,       linear_f32,   rms_norm,
                                   cache_write, attend_f32, merge_tiles, pack_rows,    code_panel,
                                   max_value,   sum_exp,    exp_weights, sum_at_least, collect_between};
  return &kernels;
}

}  // namespace lb::cpu
