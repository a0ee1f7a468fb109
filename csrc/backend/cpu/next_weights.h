// What a thread does while it waits for the others.
#pragma once

#include <algorithm>
#include <cstddef>

namespace lb::cpu {

// The weights that one thread multiplies first in the next matrix product. It fetches them into its L2 cache while it
// waits for the others to finish the step before: memory would have little to do meanwhile.
class NextWeights {
 public:
  // From now on, fetches [begin, end); goes on where it was if it did so before.
  void aim(const std::byte* begin, const std::byte* end) {
    if (begin == begin_) return;
    begin_ = begin;
    next_ = begin;
    end_ = begin + std::min<std::ptrdiff_t>(end - begin, kMaxBytes);
  }

  // Fetches a cache line. False when there is none left to fetch.
  bool fetch() {
    if (next_ == end_) return false;
    __builtin_prefetch(next_, 0, 2);
    next_ += std::min<std::ptrdiff_t>(end_ - next_, kLine);
    return true;
  }

 private:
  static constexpr std::ptrdiff_t kLine = 64;
  static constexpr std::ptrdiff_t kMaxBytes = 128 * 1024;  // leaves room in the L2 cache for what the step works on

  const std::byte* begin_ = nullptr;
  const std::byte* next_ = nullptr;
  const std::byte* end_ = nullptr;
};

}  // namespace lb::cpu
