#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "base/memory.h"

namespace lb {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// Logits are looked at in runs of this many: their maxima or sums tell where a value can be.
constexpr std::int64_t kRun = 256;
// Candidates are selected by weight in so many rounds at most, until so few are open that they may as well be sorted.
constexpr int kSelectRounds = 64;
constexpr std::size_t kSorted = 16;
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

std::span<Sampler::Candidate> Sampler::collect(std::span<const float> logits, float threshold) {
  const std::int64_t count =
      kernels_.collect_at_least(logits.data(), static_cast<std::int64_t>(logits.size()), threshold, indices_.data());
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t token = indices_[static_cast<std::size_t>(i)];
    candidates_[static_cast<std::size_t>(i)] = {token, logits[static_cast<std::size_t>(token)], 0};
  }
  return std::span(candidates_).first(static_cast<std::size_t>(count));
}

// Brings the most likely candidates to the front: as few as weigh at least `mass` together, or all.
Sampler::Nucleus Sampler::gather_mass(std::span<Candidate> candidates, double mass) {
  const auto weigh = [](std::span<const Candidate> some) {
    double sum = 0;
    for (const Candidate& c : some) sum += c.weight;
    return sum;
  };
  double sum = 0;  // of those before `begin`, all of which are needed; none from `end` on is
  std::size_t begin = 0;
  std::size_t end = candidates.size();
  // Quickselect by weight. Rounds that find bad pivots are not worth going on with: then the rest is sorted.
  for (int round = 0; round < kSelectRounds && end - begin > kSorted; ++round) {
    std::span<Candidate> open = candidates.subspan(begin, end - begin);
    std::array some{open.front(), open[open.size() / 2], open.back()};
    std::ranges::sort(some, more_likely);
    const auto rest = std::partition(open.begin(), open.end(),
                                     [pivot = some[1]](const Candidate& c) { return more_likely(c, pivot); });
    const auto more = static_cast<std::size_t>(rest - open.begin());
    const double upper = weigh(open.first(more));
    if (sum + upper >= mass) {
      end = begin + more;
    } else {
      begin += more;
      sum += upper;
    }
  }
  std::sort(candidates.begin() + static_cast<std::ptrdiff_t>(begin),
            candidates.begin() + static_cast<std::ptrdiff_t>(end), more_likely);
  std::size_t count = begin;
  while (count < end && (count == 0 || sum < mass)) sum += candidates[count++].weight;
  return {count, sum};
}

std::int32_t Sampler::sample_candidates(std::span<const float> logits, float maximum, const SamplingParams& params,
                                        double u) {
  const auto size = static_cast<std::int64_t>(logits.size());
  const float inverse_temperature = 1 / params.temperature;
  const auto weight = [&](const Candidate& c) { return std::exp((c.value - maximum) * inverse_temperature); };
  std::span<Candidate> kept;
  double total = 0;  // weight of all that top_k leaves
  if (params.top_k > 0 && params.top_k < size) {
    kept = collect(logits, largest(logits, params.top_k));
    std::nth_element(kept.begin(), kept.begin() + (params.top_k - 1), kept.end(), more_likely);
    const float kth = kept[static_cast<std::size_t>(params.top_k) - 1].value;  // ties with it stay
    kept = kept.first(static_cast<std::size_t>(
        std::partition(kept.begin(), kept.end(), [kth](const Candidate& c) { return c.value >= kth; }) - kept.begin()));
    for (const Candidate& c : kept) total += weight(c);
  } else {
    total = sum_exp(logits, maximum, inverse_temperature);
    // Tokens less likely than (1 - top_p) / V hold less than 1 - top_p in all, so the nucleus is among the others. And
    // min_p keeps what is at least min_p times as likely as the most likely token.
    const double by_top_p =
        params.top_p < 1 ? std::log((1.0 - params.top_p) * total / static_cast<double>(size)) : kNever;
    const double by_min_p =
        params.min_p > 0 && params.top_p >= 1 ? std::log(static_cast<double>(params.min_p)) : kNever;
    kept = collect(logits, maximum + static_cast<float>(std::max(by_top_p, by_min_p)) * params.temperature);
  }
  for (Candidate& c : kept) c.weight = weight(c);
  const auto possible = [&](const Candidate& c) { return c.weight > 0 && c.weight >= params.min_p; };
  kept = kept.first(static_cast<std::size_t>(std::partition(kept.begin(), kept.end(), possible) - kept.begin()));

  const Nucleus nucleus = gather_mass(kept, params.top_p < 1 ? params.top_p * total : kEverything);
  // The inverse of the cumulative distribution: the first token at which the sum is more than u of all.
  const double passed = std::nextafter(u * nucleus.weight, kEverything);
  return kept[gather_mass(kept.first(nucleus.count), passed).count - 1].token;
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
  const std::span<Candidate> not_less = collect(logits, own);
  const auto rank = 1 + std::ranges::count_if(not_less, [own](const Candidate& c) { return c.value > own; });
  out.push_back({token, logprob(token), static_cast<std::int32_t>(rank)});
  if (num_top == 0) return;
  const std::span<Candidate> likely = collect(logits, largest(logits, num_top));
  const auto count = std::min<std::size_t>(likely.size(), static_cast<std::size_t>(num_top));
  std::partial_sort(likely.begin(), likely.begin() + static_cast<std::ptrdiff_t>(count), likely.end(), more_likely);
  for (std::size_t i = 0; i < count; ++i)
    out.push_back({likely[i].token, logprob(likely[i].token), static_cast<std::int32_t>(i) + 1});
}

}  // namespace lb
