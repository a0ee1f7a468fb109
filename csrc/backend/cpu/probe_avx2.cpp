// Probes of AVX2 with FMA. This file alone is compiled with those flags.
#include <immintrin.h>

#include "backend/cpu/probe.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::avx2 {
namespace {

#include "backend/cpu/simd_avx2.h"

constexpr int kSums = 6;  // of two registers each; latency 4 at two a cycle asks for 8 registers

#include "backend/cpu/probe_body.inc"

}  // namespace
}  // namespace lb::cpu::avx2

namespace lb::cpu {

const Probe& avx2_probe() {
  using namespace avx2;
  static constexpr Probe probe{"avx2", read, {"vfmadd231ps ymm", kMultiplyAddFlops, multiply_add}, {}};
  return probe;
}

}  // namespace lb::cpu
