// One sample of a request while it is being generated.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/request.h"

namespace lb {

// Owned by the engine; its vectors have the room that the sample can ever need, so that steps do not allocate.
struct Sequence {
  std::shared_ptr<const Request> request;
  std::int32_t sample = 0;
  std::uint64_t seed = 0;

  std::vector<std::int32_t> tokens;  // prompt, then output
  std::int64_t num_computed = 0;     // tokens whose keys and values are in the cache
  std::int64_t max_length = 0;       // tokens.size() never exceeds this

  std::vector<std::int32_t> blocks;      // of the cache, in order of position
  std::int64_t num_published = 0;        // leading blocks that are in the prefix index
  PrefixId last_prefix = kNoPrefix;      // of the last of those
  std::int64_t num_cached_tokens = 0;    // of the prompt, found in the prefix cache at first admission
  std::int64_t num_prompt_logprobs = 0;  // prompt tokens whose logprobs have been given

  std::int32_t forks = 0;  // further samples to split off once the prompt is computed
  bool was_admitted = false;
  float queue_seconds = 0;  // before it was first admitted

  TokenMask mask;            // of the next token
  bool awaits_mask = false;  // the next token may not be chosen yet; everything before it may be computed

  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t prompt_length() const { return static_cast<std::int64_t>(request->prompt.size()); }
  std::int64_t output_length() const { return length() - prompt_length(); }
  std::int64_t num_uncomputed() const { return length() - num_computed; }
  std::span<const std::int32_t> output() const { return std::span(tokens).subspan(request->prompt.size()); }
  const SamplingParams& params() const { return request->params; }
  // Samples that this sequence stands for.
  std::int64_t slots() const { return 1 + forks; }
};

}  // namespace lb
