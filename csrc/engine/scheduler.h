// Decides which tokens the next step computes, and which cache blocks they go to.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "engine/block_pool.h"
#include "engine/sequence.h"

namespace lb {

struct SchedulerLimits {
  std::int64_t max_tokens = 512;     // a step
  std::int64_t max_sequences = 64;   // running at once
  std::int64_t max_logit_rows = 64;  // a step
  bool mixes_prefill_and_decode = true;
  bool prefix_caching = true;
};

// Tokens [num_computed, num_computed + num_tokens) of a sequence.
struct ScheduledChunk {
  Sequence* sequence = nullptr;
  std::int64_t num_tokens = 0;
  std::int64_t num_logit_rows = 0;  // the last rows of the chunk
};

struct StepPlan {
  std::vector<ScheduledChunk> chunks;
  std::vector<BlockCopy> copies;  // before the step
};

// Continuous batching with chunked prefill. Sequences run in order of arrival: each step first gives every decoding
// sequence its token and then fills up with chunks of prompts. A sequence that finds no free block makes the youngest
// one give up its blocks (preemption: its tokens are kept and computed again later). The oldest is never preempted for
// another, and every admitted request fits the pool alone, so each step makes progress. Not thread-safe.
class Scheduler {
 public:
  Scheduler(BlockPool& pool, const SchedulerLimits& limits);

  void add(std::unique_ptr<Sequence> sequence);  // to the end of the queue
  // Makes a running copy that shares the blocks of `parent`, which must be running.
  Sequence& fork(const Sequence& parent);

  // Fills `plan` with the next step; empty when there is nothing to do.
  void schedule(StepPlan& plan);
  // After the step: counts the chunk's tokens as computed and makes its full blocks findable.
  void complete(const ScheduledChunk& chunk);
  // Frees the blocks of a sequence, running or waiting, and forgets it.
  void remove(const Sequence& sequence) {
    remove_if([&sequence](const Sequence& other) { return &other == &sequence; });
  }
  // Likewise for all sequences for which `matches` is true, in one pass.
  template <class F>
  void remove_if(F&& matches) {
    const auto drop = [&](const std::unique_ptr<Sequence>& sequence) {
      const bool gone = matches(*sequence);
      if (gone) release_blocks(*sequence);
      return gone;
    };
    std::erase_if(running_, drop);
    std::erase_if(waiting_, drop);
  }

  // The sequence of a sample, or null when it has ended.
  Sequence* find(RequestId request, std::int32_t sample);

  bool idle() const { return running_.empty() && waiting_.empty(); }
  std::int64_t num_running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t num_waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  std::int64_t num_preemptions() const { return num_preemptions_; }
  std::int64_t prefix_queries() const { return prefix_queries_; }  // tokens looked up, tokens found
  std::int64_t prefix_hits() const { return prefix_hits_; }

 private:
  void schedule_running(StepPlan& plan, bool decoding);
  void admit_waiting(StepPlan& plan);
  bool awaits_mask() const;
  bool reserve(Sequence& sequence, std::int64_t num_tokens, StepPlan& plan);
  bool make_room(const Sequence& sequence, const StepPlan& plan);
  void preempt(std::size_t position);
  void use_cached_prefix(Sequence& sequence);
  void release_blocks(Sequence& sequence);
  std::int64_t chunk_tokens(const Sequence& sequence) const;
  void append(StepPlan& plan, Sequence& sequence, std::int64_t num_tokens);

  BlockPool& pool_;
  const SchedulerLimits limits_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  std::deque<std::unique_ptr<Sequence>> waiting_;   // next first
  std::int64_t tokens_left_ = 0;                    // of the step being planned
  std::int64_t logit_rows_left_ = 0;
  bool preempted_ = false;  // in the step being planned
  std::int64_t num_preemptions_ = 0;
  std::int64_t prefix_queries_ = 0;
  std::int64_t prefix_hits_ = 0;
};

}  // namespace lb
