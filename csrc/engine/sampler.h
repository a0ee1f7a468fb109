// Chooses the next token from a row of logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/cpu/kernels.h"
#include "base/memory.h"
#include "engine/request.h"
#include "engine/sequence.h"

namespace lb {

// Scratch memory for one thread, committed when it is first needed; choosing does not allocate. The result depends only
// on the logits, the sequence's tokens, its parameters and seed: not on other sequences, threads or preemption.
class Sampler {
 public:
  Sampler(const cpu::Kernels& kernels, std::int64_t vocab_size, std::span<const std::int32_t> eos_token_ids);

  // The next token of `sequence`, or -1 when the logits are not numbers.
  std::int32_t choose(std::span<const float> logits, const Sequence& sequence);

  // Appends the log probability of `token` and then those of the `num_top` most likely tokens.
  void append_logprobs(std::span<const float> logits, std::int32_t token, std::int32_t num_top,
                       std::vector<TokenLogprob>& out);

 private:
  struct Candidate {
    std::int32_t index = 0;  // into the values that are chosen among
    float value = 0;         // logit
    float weight = 0;        // proportional to its probability
  };
  struct Reached {
    Candidate last;
    double sum = 0;  // of its weight and those of all that are more likely
  };

  std::span<const float> process(std::span<const float> logits, const Sequence& sequence);
  void penalise(const Sequence& sequence);
  void forbid(const TokenMask& mask);
  double sum_exp(std::span<const float> logits, float maximum, float factor) const;
  std::int32_t sample_all(std::span<const float> logits, float maximum, float inverse_temperature,
                          double uniform) const;
  std::int32_t sample_candidates(std::span<const float> logits, float maximum, const SamplingParams& params,
                                 double uniform);
  static bool more_likely(const Candidate& a, const Candidate& b) {
    if (a.weight != b.weight) return a.weight > b.weight;
    return a.value != b.value ? a.value > b.value : a.index < b.index;
  }
  std::span<const float> keep_top(std::span<const float> logits, std::int32_t top_k);
  // In order of likelihood, the candidate with which the sum of weights reaches `mass`; or the last before `end`, or
  // the last one that weighs at least end.weight.
  Reached reach(std::span<const float> values, double mass, const Candidate& end);
  std::span<const std::int32_t> collect(std::span<const float> x, float low, float high);
  float largest(std::span<const float> logits, std::int64_t count);

  const cpu::Kernels& kernels_;
  const std::vector<std::int32_t> eos_token_ids_;
  LazyArray<float> processed_;       // [V]
  LazyArray<std::int32_t> indices_;  // [V]
  LazyArray<float> values_;          // [V] logits that top_k leaves
  LazyArray<std::int32_t> tokens_;   // [V] and whose they are
  LazyArray<float> weights_;         // [V]
  LazyArray<Candidate> candidates_;  // [V]
  std::vector<float> maxima_;        // of runs of logits
  LazyArray<std::int32_t> counts_;   // [V] zero between calls
};

}  // namespace lb
