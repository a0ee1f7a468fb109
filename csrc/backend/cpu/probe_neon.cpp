// Probes of AArch64 Advanced SIMD.
#include <arm_neon.h>

#include "backend/cpu/probe.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::neon {
namespace {

#include "backend/cpu/simd_neon.h"

constexpr int kSums = 6;  // of four registers each; latency 4 at four a cycle asks for 16 registers

#include "backend/cpu/probe_body.inc"

}  // namespace
}  // namespace lb::cpu::neon

namespace lb::cpu {

const Probe& neon_probe() {
  using namespace neon;
  static constexpr Probe probe{"neon", read, {"fmla", kMultiplyAddFlops, multiply_add}, {}};
  return probe;
}

}  // namespace lb::cpu
