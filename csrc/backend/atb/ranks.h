// Which of the processes that share a model this one is, as its launcher says.
#pragma once

#include "backend/atb/plan.h"

namespace lb::npu {

// Reads RANK_ID and RANK_SIZE (msrun, MindIE) or RANK and WORLD_SIZE (torchrun); alone where neither is set. Throws
// ConfigError when they make no sense.
Ranks ranks_from_environment();

}  // namespace lb::npu
