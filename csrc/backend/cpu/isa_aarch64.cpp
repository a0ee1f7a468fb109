#include "backend/cpu/isa.h"

namespace lb::cpu {

std::vector<const Kernels*> available_kernels() { return {neon_kernels(), scalar_kernels()}; }

}  // namespace lb::cpu
