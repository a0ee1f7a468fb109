// How the pieces of one step are handed out to the members of a team.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace lb::cpu {

// Every member has an equal range of the pieces and takes them from the front, so that it streams through neighbouring
// weights; whoever has finished its own range helps the others, from the back of theirs. A member that the system has
// taken off its core without a piece in hand is not waited for.
class WorkShares {
 public:
  explicit WorkShares(int members) : taken_(static_cast<std::size_t>(members)) {}

  // Before a step; no member may be in run().
  void reset() {
    for (Taken& taken : taken_) taken.counts.store(0, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
  }

  // The first of a member's own pieces; those of the next member follow.
  std::int64_t first_piece(std::int64_t member, std::int64_t count) const {
    return member * count / static_cast<std::int64_t>(taken_.size());
  }

  // Calls f(piece), over all members once for every piece in [0, count); returns when all are finished, by whichever
  // members. Every member must call it, with the same count.
  template <class F>
  void run(int member, std::int64_t count, F&& f) {
    const auto members = static_cast<std::int64_t>(taken_.size());
    std::uint32_t mine = 0;
    for (std::int64_t i = 0; i < members; ++i) {
      const std::int64_t owner = (member + i) % members;
      const std::int64_t begin = first_piece(owner, count);
      const std::int64_t end = first_piece(owner + 1, count);
      std::atomic<std::uint64_t>& counts = taken_[static_cast<std::size_t>(owner)].counts;
      for (;; ++mine) {
        // Pieces taken from the front in the low half, from the back in the high half: together they tell whether any
        // is left.
        const std::uint64_t before = counts.fetch_add(i == 0 ? 1 : kFromBack, std::memory_order_relaxed);
        const auto front = static_cast<std::int64_t>(before % kFromBack);
        const auto back = static_cast<std::int64_t>(before / kFromBack);
        if (front + back >= end - begin) break;
        f(i == 0 ? begin + front : end - 1 - back);
      }
    }
    const auto all = static_cast<std::uint32_t>(count);
    if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == all) done_.notify_all();
    wait_for(done_, all);
  }

 private:
  static constexpr std::uint64_t kFromBack = std::uint64_t{1} << 32;

  struct alignas(64) Taken {
    std::atomic<std::uint64_t> counts{0};
  };

  std::vector<Taken> taken_;
  alignas(64) std::atomic<std::uint32_t> done_{0};
};

}  // namespace lb::cpu
