// Where the KV cache keeps the keys and values of one layer.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/kernels.h"
#include "base/memory.h"

namespace lb::cpu {

// [runs of 16 groups of 16 positions][kv_heads]{keys [groups][key_words], values [groups][value_words]}. A head's part
// of a run is a stream of tens of KiB, which the processor's own prefetchers follow; blocks of neighbouring ids, as a
// sequence usually has, are neighbours in it.
class CacheLayout {
 public:
  CacheLayout(std::int64_t num_kv_heads, std::int64_t head_dim, DType dtype)
      : num_kv_heads_(num_kv_heads), head_dim_(head_dim), dtype_(dtype) {}

  std::int64_t num_kv_heads() const { return num_kv_heads_; }
  std::int64_t head_dim() const { return head_dim_; }
  std::int64_t bytes_per_position() const { return num_kv_heads_ * (key_words() + value_words()) / kLanes * 4; }

  // Words of one layer with room for so many positions, a multiple of 16.
  std::int64_t words(std::int64_t positions) const {
    return ceil_div(positions, kRunPositions) * num_kv_heads_ * head_words();
  }

  CacheView view(std::uint32_t* layer, std::int64_t kv_head, std::int64_t block_size) const {
    std::uint32_t* keys = layer + kv_head * head_words();
    return {.keys = keys,
            .values = keys + kRunGroups * key_words(),
            .key_words = key_words(),
            .value_words = value_words(),
            .run_stride = num_kv_heads_ * head_words(),
            .block_size = block_size,
            .head_dim = head_dim_,
            .padded_dim = padded_dim(),
            .dtype = dtype_};
  }

  // Copies the keys and values of all heads of one block.
  void copy_block(std::uint32_t* layer, std::int64_t source, std::int64_t target, std::int64_t block_size) const {
    for (std::int64_t i = 0; i < block_size / kLanes; ++i) {
      const std::int64_t from = source * block_size / kLanes + i;
      const std::int64_t to = target * block_size / kLanes + i;
      for (std::int64_t head = 0; head < num_kv_heads_; ++head) {
        const CacheView cache = view(layer, head, block_size);
        const auto copy = [&](std::uint32_t* base, std::int64_t words) {
          std::copy_n(base + group_offset(cache, from, words), words, base + group_offset(cache, to, words));
        };
        copy(cache.keys, cache.key_words);
        copy(cache.values, cache.value_words);
      }
    }
  }

 private:
  static constexpr std::int64_t kRunPositions = kRunGroups * kLanes;

  std::int64_t padded_dim() const { return padded_head_dim(head_dim_); }
  std::int64_t key_words() const { return kLanes * head_dim_ / elements_per_step(dtype_); }
  std::int64_t value_words() const { return kLanes * padded_dim() / elements_per_step(dtype_); }
  std::int64_t head_words() const { return kRunGroups * (key_words() + value_words()); }

  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  DType dtype_;
};

}  // namespace lb::cpu
