// Probes of AVX-512 with the bf16 dot product. This file alone is compiled with those flags.
#include <immintrin.h>

#include "backend/cpu/probe.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::avx512bf16 {
namespace {

#include "backend/cpu/simd_avx512.h"

constexpr int kSums = 12;  // latency 6 at one a cycle asks for 6, at two a cycle for 12

#include "backend/cpu/probe_body.inc"

inline float dot(std::int64_t rounds) {
  __m512 sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_setzero_ps();
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(rounds)));  // unknown to the compiler
  const auto b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f003f00));                // pairs of 0.5
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_cvtss_f32(sums[0]);
}

}  // namespace
}  // namespace lb::cpu::avx512bf16

namespace lb::cpu {

const Probe& avx512bf16_probe() {
  using namespace avx512bf16;
  static constexpr Probe probe{"avx512bf16",
                               read,
                               {"vfmadd231ps zmm", kMultiplyAddFlops, multiply_add},
                               {"vdpbf16ps zmm", 2 * kMultiplyAddFlops, dot}};
  return probe;
}

}  // namespace lb::cpu
