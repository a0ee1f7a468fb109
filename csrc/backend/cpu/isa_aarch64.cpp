#include "backend/cpu/isa.h"
#include "backend/cpu/probe.h"

namespace lb::cpu {

std::vector<const Kernels*> available_kernels() { return {neon_kernels(), scalar_kernels()}; }

const Probe& probe_of(const Kernels& kernels) { return &kernels == neon_kernels() ? neon_probe() : scalar_probe(); }

}  // namespace lb::cpu
