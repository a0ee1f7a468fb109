// What ATB and the chip can run; checked here because ATB finds out late, or never.
#pragma once

#include <cstdint>

#include "backend/atb/plan.h"
#include "graph/graph.h"

namespace lb::npu {

// The attention of a layer; there is exactly one.
const PagedAttention& attention_of(const Graph& layer);

// Throws one ConfigError that lists every limit that the model or an option breaks.
void check_limits(const Graph& layer, const Target& target, std::int64_t block_size, std::int64_t max_sequences);

// Whether SelfAttention can read the cache (kPrefix); kExtend is slower, but fits every step.
bool has_prefix_encoder(const Graph& layer, const Target& target, std::int64_t block_size);

// The prefix encoder takes contexts that start at a multiple of this.
inline constexpr std::int64_t kPrefixMultiple = 128;

}  // namespace lb::npu
