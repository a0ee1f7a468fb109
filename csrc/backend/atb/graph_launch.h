// Decoding in ATB's graph launch mode: an operation's kernels are captured when it is first executed, and replayed with
// one call from then on. Its shapes may not change any more, so a step is filled up to one of a few sizes, which the
// user names; without them the mode is off.
#pragma once

#include <atb/atb_infer.h>

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace lb::npu {

// The numbers of sequences that the environment variable LLM_BOOST_ATB_GRAPH_LAUNCH lists, such as "1,4,16", ascending;
// none where it is not set. Throws ConfigError for what is no such list or more than a step can hold.
std::vector<std::int64_t> graph_launch_sizes(const ProgramOptions& options);

// Switches the mode on; to be called before the context's first Setup. Throws BackendError where CANN is too old.
void use_graph_launch(atb::Context& context);

// A decode step, filled up with sequences of one token each that write to a block of no one else.
class PaddedStep {
 public:
  // `spare_block` is a block that no sequence is given.
  PaddedStep(const ProgramOptions& options, std::int64_t spare_block);

  // Whether each sequence brings one token and wants its logits.
  static bool fits(const StepBatch& batch);

  // `batch` followed by what makes `size` sequences of it. Valid until the next call.
  StepBatch pad(const StepBatch& batch, std::int64_t size);

 private:
  const std::size_t max_blocks_;
  const std::int32_t spare_slot_;
  const std::int32_t spare_block_;
  std::vector<std::int32_t> token_ids_, positions_, slots_, seq_begin_, context_len_, block_table_, rows_;
};

}  // namespace lb::npu
