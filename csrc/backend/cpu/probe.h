// What the machine can do at best, found with the loads and multiplications that the kernels use: the limits that
// benchmark results are fractions of. One table per instruction set level, beside its Kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace lb::cpu {

// Multiplies and adds in registers alone.
struct ArithmeticProbe {
  const char* instruction = nullptr;            // null: this level has none
  std::int64_t flops = 0;                       // of a round
  float (*run)(std::int64_t rounds) = nullptr;  // the result is there so that the loop is
};

struct Probe {
  const char* isa;  // as Kernels::name
  // Loads `bytes` bytes at 64-byte aligned `data` as `streams` (1, 2, 4 or 8) sequential streams in turn, each
  // prefetched `ahead` bytes ahead; bytes is a multiple of 256 * streams. Returns a sum over what was read.
  float (*read)(const std::byte* data, std::size_t bytes, int streams, std::size_t ahead);
  ArithmeticProbe f32_fma;
  ArithmeticProbe bf16_dot;
};

const Probe& scalar_probe();
const Probe& avx2_probe();
const Probe& avx512_probe();
const Probe& avx512bf16_probe();
const Probe& neon_probe();

// The probe of the same level as `kernels`.
const Probe& probe_of(const Kernels& kernels);

}  // namespace lb::cpu
