#include "backend/atb/limits.h"

#include "backend/atb/sharding.h"
#include "base/error.h"

namespace lb::npu {

const PagedAttention& attention_of(const Graph& layer) {
  const PagedAttention* found = nullptr;
  for (const Op& op : layer.ops) {
    if (const auto* attention = std::get_if<PagedAttention>(&op)) found = attention;
  }
  LB_CHECK(found != nullptr, layer.name);
  return *found;
}

bool has_prefix_encoder(const Graph& layer, const Target& target, std::int64_t block_size) {
  return !target.is_310p && block_size == kPrefixMultiple && attention_of(layer).head_dim <= 128;
}

void check_limits(const Graph& layer, const Target& target, std::int64_t block_size, std::int64_t max_sequences) {
  const PagedAttention& attention = attention_of(layer);
  const Heads heads = shard_heads(attention, target.ranks);
  std::string problems;
  const auto require = [&problems](bool holds, const std::string& problem) {
    if (!holds) problems += "\n  " + problem;
  };
  require(target.dtype != DType::kF32, "activations are float32, expected float16 or bfloat16");
  require(!target.is_310p || target.dtype == DType::kF16,
          cat("activations are ", name(target.dtype), ", but this chip computes in float16 alone"));
  require(block_size % 16 == 0 && block_size <= 128,
          cat("block_size is ", block_size, ", expected a multiple of 16 up to 128"));
  require(attention.head_dim % 16 == 0 && attention.head_dim <= 256,
          cat("head_dim is ", attention.head_dim, ", expected a multiple of 16 up to 256"));
  require(attention.head_dim * block_size <= 128 * 128,
          cat("head_dim ", attention.head_dim, " x block_size ", block_size,
              " is more than 16384; use a block_size of ", 128 * 128 / attention.head_dim / 16 * 16));
  require(heads.query % heads.kv == 0,
          cat(heads.query, " query heads of a rank are no multiple of its ", heads.kv, " kv heads; start fewer ranks"));
  require(heads.query <= 256 && heads.query * attention.head_dim <= 16384,
          cat(heads.query, " heads x head_dim ", attention.head_dim,
              " is more than 16384 (or 256 heads); start more ranks"));
  require(max_sequences <= 2000, cat("max_num_seqs is ", max_sequences, ", expected at most 2000"));
  require(attention.scale != 0, "the attention scale is 0");
  require(!target.is_310p || target.ranks.size == 1 || target.communication == "hccl",
          "communication_backend is lccl, which this chip does not have; use hccl");
  for (const Value& value : layer.values) {
    if (value.role == Role::kInput)
      require(value.dims[0] % 16 == 0, cat("hidden_size is ", value.dims[0], ", expected a multiple of 16"));
  }
  if (!problems.empty()) throw ConfigError("the atb backend cannot run this model as asked:" + problems);
}

}  // namespace lb::npu
