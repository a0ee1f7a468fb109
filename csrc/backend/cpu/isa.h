// Chooses the kernels of an instruction set level at run time.
#pragma once

#include <vector>

#include "backend/cpu/kernels.h"

namespace lb::cpu {

// The levels that this machine can run, best first; the scalar level is always the last.
std::vector<const Kernels*> available_kernels();

// The best available level, or the one that the environment variable LLM_BOOST_ISA names. Throws ConfigError when that
// level is unknown or not available here.
const Kernels& select_kernels();

}  // namespace lb::cpu
