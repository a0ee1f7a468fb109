// Which part of each weight a rank keeps when several devices share a model.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/atb/plan.h"
#include "graph/graph.h"

namespace lb::npu {

// Heads of one rank. Where there are fewer kv heads than ranks, neighbours keep the same one.
struct Heads {
  std::int64_t query = 0;
  std::int64_t kv = 0;
  std::int64_t first_kv = 0;
};

// Throws ConfigError unless heads and ffn columns can be shared out evenly.
Heads shard_heads(const PagedAttention& attention, const Ranks& ranks);
std::int64_t share(std::int64_t extent, const char* what, const Ranks& ranks);

// Rows q, k, v of this rank's heads.
std::vector<Range> qkv_rows(const PagedAttention& attention, const Ranks& ranks);
// Rows of the gate and up halves.
std::vector<Range> gate_up_rows(std::int64_t ffn, const Ranks& ranks);

}  // namespace lb::npu
