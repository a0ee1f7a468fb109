#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/memory.h"
#include "engine/engine.h"

namespace lb {
namespace {

// Enough for every published use; keeps a request from asking for the whole vocabulary at every token.
constexpr std::int32_t kMaxLogprobs = 100;

template <class... Args>
void require(bool holds, const Args&... message) {
  if (!holds) throw RequestError(cat(message...));
}

void check_range(const char* name, double value, double low, double high, const char* expected) {
  require(std::isfinite(value) && value >= low && value <= high, name, " is ", value, ", expected ", expected);
}

void check_sampling(const SamplingParams& params, std::int64_t vocab_size, std::int64_t max_sequences) {
  constexpr double kHuge = std::numeric_limits<float>::max();
  check_range("n", params.n, 1, static_cast<double>(max_sequences), cat("1 to max_num_seqs ", max_sequences).c_str());
  check_range("max_tokens", params.max_tokens, 1, std::numeric_limits<std::int32_t>::max(), "at least 1");
  check_range("min_tokens", params.min_tokens, 0, params.max_tokens,
              cat("0 to max_tokens ", params.max_tokens).c_str());
  check_range("temperature", params.temperature, 0, kHuge, "0 (greedy) or a positive number");
  require(params.temperature == 0 || params.temperature >= 1e-4F, "temperature is ", params.temperature,
          ", expected 0 (greedy) or at least 0.0001");
  check_range("top_k", params.top_k, 0, std::numeric_limits<std::int32_t>::max(), "0 (off) or a positive number");
  check_range("top_p", params.top_p, 0, 1, "a number above 0, up to 1");
  require(params.top_p > 0, "top_p is 0, expected a number above 0, up to 1");
  check_range("min_p", params.min_p, 0, 1, "a number from 0 to 1");
  check_range("repetition_penalty", params.repetition_penalty, 1e-4, 1e4, "a number from 0.0001 to 10000");
  check_range("presence_penalty", params.presence_penalty, -2, 2, "a number from -2 to 2");
  check_range("frequency_penalty", params.frequency_penalty, -2, 2, "a number from -2 to 2");
  check_range("logprobs", params.logprobs, -1, kMaxLogprobs, cat("0 to ", kMaxLogprobs).c_str());
  check_range("prompt_logprobs", params.prompt_logprobs, -1, kMaxLogprobs, cat("0 to ", kMaxLogprobs).c_str());
  const auto check_token = [vocab_size](const char* name, std::int32_t token) {
    require(token >= 0 && token < vocab_size, name, " holds token ", token, ", expected 0 to ", vocab_size - 1);
  };
  for (const std::int32_t token : params.stop_token_ids) check_token("stop_token_ids", token);
  for (const auto& [token, bias] : params.logit_bias) {
    check_token("logit_bias", token);
    require(!std::isnan(bias) && bias < kHuge, "logit_bias of token ", token, " is ", bias, ", expected a number");
  }
}

}  // namespace

void Engine::check_mask(const TokenMask& mask) const {
  const std::int64_t words = ceil_div(limits_.vocab_size, std::int64_t{32});
  require(static_cast<std::int64_t>(mask.size()) == words, "the token mask has ", mask.size(), " words, expected ",
          words, " for ", limits_.vocab_size, " tokens");
  const auto spare = static_cast<unsigned>(words * 32 - limits_.vocab_size);  // bits of the last word without a token
  const bool any = std::ranges::any_of(mask.begin(), mask.end() - 1, [](std::uint32_t word) { return word != 0; });
  require(any || mask.back() << spare != 0, "the token mask allows no token, expected at least one");
}

void Engine::check(const Request& request) const {
  check_sampling(request.params, limits_.vocab_size, options_.max_sequences);
  if (!request.mask.empty()) {
    check_mask(request.mask);
    require(request.params.min_tokens == 0 && !request.params.ignore_eos,
            "a token mask decides when the text may end, so min_tokens and ignore_eos cannot be used with it");
  }
  const auto length = static_cast<std::int64_t>(request.prompt.size());
  require(length > 0, "the prompt is empty, expected at least one token");
  for (std::size_t i = 0; i < request.prompt.size(); ++i) {
    const std::int32_t token = request.prompt[i];
    require(token >= 0 && token < limits_.vocab_size, "the prompt holds token ", token, " at position ", i,
            ", expected 0 to ", limits_.vocab_size - 1);
  }
  require(length < limits_.max_model_len, "the prompt has ", length, " tokens, expected less than max_model_len ",
          limits_.max_model_len,
          " so that at least one can follow; shorten it or load the model with a larger max_model_len");
  const std::int64_t longest = std::min(length + request.params.max_tokens, limits_.max_model_len);
  const std::int64_t needed = ceil_div(longest, options_.block_size);
  require(needed <= options_.num_blocks, "the request may reach ", longest, " tokens (prompt ", length,
          " + max_tokens ", request.params.max_tokens, "), which takes ", needed, " blocks of ", options_.block_size,
          ", but the cache has ", options_.num_blocks, "; lower max_tokens or load the model with a larger num_blocks");
}

}  // namespace lb
