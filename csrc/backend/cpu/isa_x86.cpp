#include "backend/cpu/isa.h"
#include "backend/cpu/probe.h"

namespace lb::cpu {

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> available;
  // These tests include whether the operating system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) available.push_back(avx512bf16_kernels());
  if (avx512) available.push_back(avx512_kernels());
  if (avx2) available.push_back(avx2_kernels());
  available.push_back(scalar_kernels());
  return available;
}

const Probe& probe_of(const Kernels& kernels) {
  if (&kernels == avx512bf16_kernels()) return avx512bf16_probe();
  if (&kernels == avx512_kernels()) return avx512_probe();
  return &kernels == avx2_kernels() ? avx2_probe() : scalar_probe();
}

}  // namespace lb::cpu
