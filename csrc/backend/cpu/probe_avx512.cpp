// Probes of AVX-512. This file alone is compiled with those flags.
#include <immintrin.h>

#include "backend/cpu/probe.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::avx512 {
namespace {

#include "backend/cpu/simd_avx512.h"

constexpr int kSums = 12;  // latency 4 at two a cycle asks for 8

#include "backend/cpu/probe_body.inc"

}  // namespace
}  // namespace lb::cpu::avx512

namespace lb::cpu {

const Probe& avx512_probe() {
  using namespace avx512;
  static constexpr Probe probe{"avx512", read, {"vfmadd231ps zmm", kMultiplyAddFlops, multiply_add}, {}};
  return probe;
}

}  // namespace lb::cpu
