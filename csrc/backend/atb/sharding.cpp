#include "backend/atb/sharding.h"

#include "base/error.h"

namespace lb::npu {

std::int64_t share(std::int64_t extent, const char* what, const Ranks& ranks) {
  if (extent % ranks.size != 0) {
    throw ConfigError(cat("the model has ", extent, " ", what, ", which ", ranks.size,
                          " ranks cannot share evenly; start as many ranks as divide it"));
  }
  return extent / ranks.size;
}

Heads shard_heads(const PagedAttention& attention, const Ranks& ranks) {
  Heads heads;
  heads.query = share(attention.num_heads, "attention heads", ranks);
  if (ranks.size % attention.num_kv_heads == 0) {
    heads.kv = 1;
    heads.first_kv = ranks.rank * attention.num_kv_heads / ranks.size;
  } else {
    heads.kv = share(attention.num_kv_heads, "kv heads", ranks);
    heads.first_kv = ranks.rank * heads.kv;
  }
  return heads;
}

std::vector<Range> qkv_rows(const PagedAttention& attention, const Ranks& ranks) {
  const Heads heads = shard_heads(attention, ranks);
  const std::int64_t dim = attention.head_dim;
  const std::int64_t k_begin = attention.num_heads * dim;
  const std::int64_t v_begin = k_begin + attention.num_kv_heads * dim;
  return {{ranks.rank * heads.query * dim, heads.query * dim},
          {k_begin + heads.first_kv * dim, heads.kv * dim},
          {v_begin + heads.first_kv * dim, heads.kv * dim}};
}

std::vector<Range> gate_up_rows(std::int64_t ffn, const Ranks& ranks) {
  const std::int64_t part = share(ffn, "ffn columns", ranks);
  return {{ranks.rank * part, part}, {ffn + ranks.rank * part, part}};
}

}  // namespace lb::npu
