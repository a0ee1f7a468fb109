// Probes of the portable level.
#include "backend/cpu/coded_panel.h"
#include "backend/cpu/probe.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::scalar {
namespace {

#include "backend/cpu/simd_scalar.h"

constexpr int kSums = 2;  // of four registers each where the baseline has 4 lanes: more would be spilled

#include "backend/cpu/probe_body.inc"

}  // namespace
}  // namespace lb::cpu::scalar

namespace lb::cpu {

const Probe& scalar_probe() {
  using namespace scalar;
  static constexpr Probe probe{"scalar", read, {"multiply, add", kMultiplyAddFlops, multiply_add}, {}};
  return probe;
}

}  // namespace lb::cpu
