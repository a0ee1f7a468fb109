// Where the KV cache keeps keys and values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/kernels.h"
#include "base/memory.h"

namespace lb::cpu {

// [runs of 16 groups of 16 positions][layers][kv_heads]{keys [groups][key_words], values [groups][value_words]}. A
// head's part of a run is a stream of tens of KiB, which the processor's own prefetchers follow; blocks of neighbouring
// ids, as a sequence usually has, are neighbours in it. All layers of a run lie together, so that the huge pages of a
// short context are few and full.
class CacheLayout {
 public:
  CacheLayout(std::int64_t num_layers, std::int64_t num_kv_heads, std::int64_t head_dim, DType dtype)
      : num_layers_(num_layers), num_kv_heads_(num_kv_heads), head_dim_(head_dim), dtype_(dtype) {}

  std::int64_t num_kv_heads() const { return num_kv_heads_; }
  std::int64_t head_dim() const { return head_dim_; }
  std::int64_t bytes_per_position() const { return run_words() / kRunPositions * 4; }

  // Words of a cache with room for so many positions, a multiple of 16.
  std::int64_t words(std::int64_t positions) const { return ceil_div(positions, kRunPositions) * run_words(); }

  CacheView view(std::uint32_t* cache, std::int64_t layer, std::int64_t kv_head, std::int64_t block_size) const {
    std::uint32_t* keys = cache + (layer * num_kv_heads_ + kv_head) * head_words();
    return {.keys = keys,
            .values = keys + kRunGroups * key_words(),
            .key_words = key_words(),
            .value_words = value_words(),
            .run_stride = run_words(),
            .block_size = block_size,
            .head_dim = head_dim_,
            .padded_dim = padded_dim(),
            .dtype = dtype_};
  }

  // Copies the keys and values of one block.
  void copy_block(std::uint32_t* cache, std::int64_t source, std::int64_t target, std::int64_t block_size) const {
    const std::int64_t groups = block_size / kLanes;
    for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
      for (std::int64_t head = 0; head < num_kv_heads_; ++head) {
        const CacheView place = view(cache, layer, head, block_size);
        const auto copy = [&](std::uint32_t* base, std::int64_t words) {
          for (std::int64_t i = 0; i < groups; ++i) {
            std::copy_n(base + group_offset(place, source * groups + i, words), words,
                        base + group_offset(place, target * groups + i, words));
          }
        };
        copy(place.keys, place.key_words);
        copy(place.values, place.value_words);
      }
    }
  }

 private:
  static constexpr std::int64_t kRunPositions = kRunGroups * kLanes;

  std::int64_t padded_dim() const { return padded_head_dim(head_dim_); }
  std::int64_t key_words() const { return kLanes * head_dim_ / elements_per_step(dtype_); }
  std::int64_t value_words() const { return kLanes * padded_dim() / elements_per_step(dtype_); }
  std::int64_t head_words() const { return kRunGroups * (key_words() + value_words()); }
  std::int64_t run_words() const { return num_layers_ * num_kv_heads_ * head_words(); }

  std::int64_t num_layers_;
  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  DType dtype_;
};

}  // namespace lb::cpu
