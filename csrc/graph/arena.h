// Plans where the intermediate buffers of a graph lie in one shared block of memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lb {

// A buffer that is live from step `first` to step `last`, both included.
struct Lifetime {
  std::int64_t bytes = 0;
  int first = 0;
  int last = 0;
};

struct ArenaPlan {
  std::vector<std::int64_t> offsets;  // one per lifetime, each a multiple of the alignment
  std::int64_t bytes = 0;             // size of the whole block
};

// Buffers whose lifetimes overlap never share a byte. Greedy, largest buffer first, each at the lowest free offset: for
// the chains of a decoder layer this is optimal or nearly so.
ArenaPlan plan_arena(std::span<const Lifetime> lifetimes, std::int64_t alignment);

}  // namespace lb
