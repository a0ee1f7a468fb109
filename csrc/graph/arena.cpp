#include "graph/arena.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/memory.h"

namespace lb {

ArenaPlan plan_arena(std::span<const Lifetime> lifetimes, std::int64_t alignment) {
  LB_CHECK(alignment > 0, alignment);
  std::vector<std::size_t> by_size(lifetimes.size());
  std::iota(by_size.begin(), by_size.end(), std::size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](std::size_t a, std::size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });

  ArenaPlan plan;
  plan.offsets.resize(lifetimes.size());
  std::vector<std::size_t> placed;  // ordered by offset
  for (const std::size_t current : by_size) {
    const Lifetime& life = lifetimes[current];
    LB_CHECK(life.bytes >= 0 && life.first <= life.last, life.bytes, " bytes, steps ", life.first, " to ", life.last);
    std::int64_t offset = 0;
    for (const std::size_t other : placed) {
      const bool overlaps = lifetimes[other].first <= life.last && life.first <= lifetimes[other].last;
      if (!overlaps) continue;
      if (offset + life.bytes <= plan.offsets[other]) break;  // the gap before `other` is large enough
      offset = std::max(offset, round_up(plan.offsets[other] + lifetimes[other].bytes, alignment));
    }
    plan.offsets[current] = offset;
    plan.bytes = std::max(plan.bytes, offset + life.bytes);
    const auto position =
        std::upper_bound(placed.begin(), placed.end(), offset,
                         [&](std::int64_t value, std::size_t other) { return value < plan.offsets[other]; });
    placed.insert(position, current);
  }
  return plan;
}

}  // namespace lb
