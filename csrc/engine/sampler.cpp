#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "base/memory.h"

namespace lb {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// Logits are looked at in runs of this many: their maxima or sums tell where a value can be.
constexpr std::int64_t kRun = 256;
// So many candidates may as well be sorted.
constexpr double kSorted = 128;
constexpr float kAnyLogit = std::numeric_limits<float>::infinity();
constexpr double kEverything = std::numeric_limits<double>::infinity();

// A number in [0, 1) from the seed and how many came before: SplitMix64, so that the n-th needs none of the others.
double uniform(std::uint64_t seed, std::int64_t index) {
  std::uint64_t x = seed + 0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(index) + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1.0p-53;
}

}  // namespace

Sampler::Sampler(const cpu::Kernels& kernels, std::int64_t vocab_size, std::span<const std::int32_t> eos_token_ids)
    : kernels_(kernels),
      eos_token_ids_(eos_token_ids.begin(), eos_token_ids.end()),
      processed_(static_cast<std::size_t>(vocab_size)),
      indices_(static_cast<std::size_t>(vocab_size)),
      values_(static_cast<std::size_t>(vocab_size)),
      tokens_(static_cast<std::size_t>(vocab_size)),
      weights_(static_cast<std::size_t>(vocab_size)),
      candidates_(static_cast<std::size_t>(vocab_size)),
      maxima_(static_cast<std::size_t>(ceil_div(vocab_size, kRun))),
      counts_(static_cast<std::size_t>(vocab_size)) {}

std::int32_t Sampler::choose(std::span<const float> raw, const Sequence& sequence) {
  const SamplingParams& params = sequence.params();
  const std::span<const float> logits = process(raw, sequence);
  const auto size = static_cast<std::int64_t>(logits.size());
  const float maximum = kernels_.max_value(logits.data(), size);
  if (!std::isfinite(maximum)) return -1;
  const auto greedy = [&] {
    return static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), maximum) - logits.begin());
  };
  if (params.temperature == 0 || params.top_k == 1) return greedy();
  const double u = uniform(sequence.seed, sequence.output_length());
  const bool restricted = (params.top_k > 0 && params.top_k < size) || params.top_p < 1 || params.min_p > 0;
  const std::int32_t token = restricted ? sample_candidates(logits, maximum, params, u)
                                        : sample_all(logits, maximum, 1 / params.temperature, u);
  return token < 0 ? greedy() : token;
}

// Applies bias, penalties, the minimum length and the mask; gives the logits themselves when there is nothing to apply.
std::span<const float> Sampler::process(std::span<const float> logits, const Sequence& sequence) {
  const SamplingParams& params = sequence.params();
  const bool penalties =
      params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0;
  const bool too_short = sequence.output_length() < params.min_tokens;
  if (!penalties && !too_short && params.logit_bias.empty() && sequence.mask.empty()) return logits;
  std::ranges::copy(logits, processed_.begin());
  for (const auto& [token, bias] : params.logit_bias) processed_[static_cast<std::size_t>(token)] += bias;
  if (penalties) penalise(sequence);
  if (too_short) {
    for (const std::int32_t token : params.stop_token_ids) processed_[static_cast<std::size_t>(token)] = kNever;
    for (const std::int32_t token : eos_token_ids_) processed_[static_cast<std::size_t>(token)] = kNever;
  }
  forbid(sequence.mask);
  return processed_;
}

void Sampler::forbid(const TokenMask& mask) {
  for (std::size_t word = 0; word < mask.size(); ++word) {
    for (std::uint32_t forbidden = ~mask[word]; forbidden != 0; forbidden &= forbidden - 1) {
      const std::size_t token = word * 32 + static_cast<std::size_t>(std::countr_zero(forbidden));
      if (token < processed_.size()) processed_[token] = kNever;
    }
  }
}

void Sampler::penalise(const Sequence& sequence) {
  const SamplingParams& params = sequence.params();
  const auto count = [&](std::int32_t token) -> std::int32_t& { return counts_[static_cast<std::size_t>(token)]; };
  const auto value = [&](std::int32_t token) -> float& { return processed_[static_cast<std::size_t>(token)]; };
  for (const std::int32_t token : sequence.output()) ++count(token);
  // Every token once: its count is cleared when it has been dealt with. -1 marks a prompt token that was.
  for (const std::int32_t token : sequence.tokens) {
    const std::int32_t occurrences = count(token);
    if (occurrences < 0) continue;
    float& logit = value(token);
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (occurrences > 0) logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(occurrences);
    count(token) = -1;
  }
  for (const std::int32_t token : sequence.tokens) count(token) = 0;
}

// Sum of exp((logit - maximum) * factor): in f32 within a run, in f64 over the runs.
double Sampler::sum_exp(std::span<const float> logits, float maximum, float factor) const {
  const auto size = static_cast<std::int64_t>(logits.size());
  double total = 0;
  for (std::int64_t begin = 0; begin < size; begin += kRun) {
    total +=
        static_cast<double>(kernels_.sum_exp(logits.data() + begin, std::min(kRun, size - begin), maximum, factor));
  }
  return total;
}

// Inverse of the cumulative distribution over the whole vocabulary, in order of token; -1 when rounding led to a run
// without a possible token.
std::int32_t Sampler::sample_all(std::span<const float> logits, float maximum, float inverse_temperature,
                                 double u) const {
  const auto size = static_cast<std::int64_t>(logits.size());
  double left = u * sum_exp(logits, maximum, inverse_temperature);
  std::int64_t begin = 0;
  for (; begin + kRun < size; begin += kRun) {
    const double run = sum_exp(logits.subspan(static_cast<std::size_t>(begin), kRun), maximum, inverse_temperature);
    if (left < run) break;
    left -= run;
  }
  std::int64_t last_possible = -1;
  for (std::int64_t i = begin; i < std::min(begin + kRun, size); ++i) {
    const float weight = std::exp((logits[static_cast<std::size_t>(i)] - maximum) * inverse_temperature);
    if (weight > 0) last_possible = i;
    left -= weight;
    if (left < 0) break;
  }
  return static_cast<std::int32_t>(last_possible);
}

// A lower bound of the count-th largest logit that few others reach: the count-th largest of the maxima of runs.
float Sampler::largest(std::span<const float> logits, std::int64_t count) {
  const auto size = static_cast<std::int64_t>(logits.size());
  const std::int64_t runs = ceil_div(size, kRun);
  if (count > runs) return kNever;
  for (std::int64_t run = 0; run < runs; ++run) {
    maxima_[static_cast<std::size_t>(run)] =
        kernels_.max_value(logits.data() + run * kRun, std::min(kRun, size - run * kRun));
  }
  const auto nth = maxima_.begin() + (count - 1);
  std::nth_element(maxima_.begin(), nth, maxima_.end(), std::greater<>());
  return *nth;
}

// Ascending indices of what lies in [low, high).
std::span<const std::int32_t> Sampler::collect(std::span<const float> x, float low, float high) {
  const std::int64_t count =
      kernels_.collect_between(x.data(), static_cast<std::int64_t>(x.size()), low, high, indices_.data());
  return std::span(indices_).first(static_cast<std::size_t>(count));
}

// The logits that top_k leaves, with their tokens in tokens_: the k largest, and ties with the last of them.
std::span<const float> Sampler::keep_top(std::span<const float> logits, std::int32_t top_k) {
  const std::span<const std::int32_t> likely = collect(logits, largest(logits, top_k), kAnyLogit);
  const auto end = std::ranges::transform(likely, values_.begin(), [&](std::int32_t token) {
                     return logits[static_cast<std::size_t>(token)];
                   }).out;
  const auto kth = values_.begin() + (top_k - 1);
  std::nth_element(values_.begin(), kth, end, std::greater<>());
  std::size_t kept = 0;
  for (const float least = *kth; const std::int32_t token : likely) {
    const float value = logits[static_cast<std::size_t>(token)];
    if (value < least) continue;
    values_[kept] = value;
    tokens_[kept++] = token;
  }
  return std::span(values_).first(kept);
}

Sampler::Reached Sampler::reach(std::span<const float> values, double mass, const Candidate& end) {
  const std::span<const float> weights = std::span(weights_).first(values.size());
  const auto sum_from = [&](float weight) {
    return kernels_.sum_at_least(weights.data(), static_cast<std::int64_t>(weights.size()), weight);
  };
  // The candidate weighs at least `low` and less than `high`, and few others do when the sums are near to each other.
  float low = end.weight;
  float high = 2;
  double from_low = sum_from(low);
  double from_high = 0;
  mass = std::min(mass, from_low);
  while (from_low - from_high > kSorted * static_cast<double>(low)) {
    const auto middle = static_cast<float>(std::sqrt(static_cast<double>(low) * static_cast<double>(high)));
    if (middle <= low || middle >= high) break;
    const double sum = sum_from(middle);
    if (sum >= mass) {
      low = middle;
      from_low = sum;
    } else {
      high = middle;
      from_high = sum;
    }
  }
  std::size_t count = 0;
  for (const std::int32_t i : collect(weights, low, high)) {
    const auto at = static_cast<std::size_t>(i);
    candidates_[count++] = {i, values[at], weights[at]};
  }
  const std::span<Candidate> open = std::span(candidates_).first(count);
  if (!std::ranges::is_sorted(open, more_likely)) std::ranges::sort(open, more_likely);
  Reached reached{end, from_high};
  for (const Candidate& candidate : open) {
    if (reached.sum >= mass || more_likely(end, candidate)) break;
    reached = {candidate, reached.sum + static_cast<double>(candidate.weight)};
  }
  return reached;
}

std::int32_t Sampler::sample_candidates(std::span<const float> logits, float maximum, const SamplingParams& params,
                                        double u) {
  const bool has_top_k = params.top_k > 0 && params.top_k < static_cast<std::int64_t>(logits.size());
  const std::span<const float> kept = has_top_k ? keep_top(logits, params.top_k) : logits;
  const auto size = static_cast<std::int64_t>(kept.size());
  kernels_.exp_weights(kept.data(), size, maximum, 1 / params.temperature, weights_.data());
  // The most likely token has weight 1: min_p is the weight of the least likely. What cannot be has weight 0.
  const Candidate least{std::numeric_limits<std::int32_t>::max(), kNever,
                        std::max(static_cast<float>(params.min_p), std::numeric_limits<float>::min())};
  const double mass =
      params.top_p < 1 ? params.top_p * kernels_.sum_at_least(weights_.data(), size, 0.0F) : kEverything;
  const Reached nucleus = reach(kept, mass, least);
  // The inverse of the cumulative distribution: the first token at which the sum is more than u of all.
  const double passed = std::nextafter(u * nucleus.sum, kEverything);
  const std::int32_t index = reach(kept, passed, nucleus.last).last.index;
  return has_top_k ? tokens_[static_cast<std::size_t>(index)] : index;
}

void Sampler::append_logprobs(std::span<const float> logits, std::int32_t token, std::int32_t num_top,
                              std::vector<TokenLogprob>& out) {
  const auto size = static_cast<std::int64_t>(logits.size());
  const float maximum = kernels_.max_value(logits.data(), size);
  const double log_total = std::log(sum_exp(logits, maximum, 1.0F));
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(logits[static_cast<std::size_t>(id)] - maximum - log_total);
  };
  const float own = logits[static_cast<std::size_t>(token)];
  const auto rank = 1 + std::ranges::count_if(collect(logits, own, kAnyLogit), [&](std::int32_t id) {
                      return logits[static_cast<std::size_t>(id)] > own;
                    });
  out.push_back({token, logprob(token), static_cast<std::int32_t>(rank)});
  if (num_top == 0) return;
  const auto found =
      std::ranges::transform(collect(logits, largest(logits, num_top), kAnyLogit), candidates_.begin(),
                             [&](std::int32_t id) { return Candidate{id, logits[static_cast<std::size_t>(id)], 0}; });
  const std::span<Candidate> likely(candidates_.begin(), found.out);
  const auto count = std::min<std::size_t>(likely.size(), static_cast<std::size_t>(num_top));
  std::partial_sort(likely.begin(), likely.begin() + static_cast<std::ptrdiff_t>(count), likely.end(), more_likely);
  for (std::size_t i = 0; i < count; ++i)
    out.push_back({likely[i].index, logprob(likely[i].index), static_cast<std::int32_t>(i) + 1});
}

}  // namespace lb
