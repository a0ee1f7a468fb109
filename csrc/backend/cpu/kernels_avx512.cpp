// AVX-512 (F, BW, DQ, VL). This file alone is compiled with those flags.
#include <immintrin.h>

#include "backend/cpu/coded_panel.h"
#include "backend/cpu/kernels.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::avx512 {
namespace {

#include "backend/cpu/simd_avx512.h"
#include "backend/cpu/shapes_avx512.inc"
#include "backend/cpu/kernels_body.inc"

}  // namespace
}  // namespace lb::cpu::avx512

namespace lb::cpu {

const Kernels* avx512_kernels() {
  using namespace avx512;
  static constexpr Kernels kernels{"avx512",    false,      true,        linear_f32,   rms_norm,
                                   cache_write, attend_f32, merge_tiles, pack_rows,    code_panel,
                                   max_value,   sum_exp,    exp_weights, sum_at_least, collect_between};
  return &kernels;
}

}  // namespace lb::cpu
