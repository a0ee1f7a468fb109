// What a caller asks for, and what it gets back, token by token.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lb {

using RequestId = std::int64_t;

// Which tokens may be chosen: bit `token % 32` of word `token / 32`, ceil(V / 32) words. Empty: any.
using TokenMask = std::vector<std::uint32_t>;

// How tokens are chosen and when to stop. Semantics are those of Hugging Face transformers, in its order: logit_bias,
// repetition, presence and frequency penalties, min_tokens, temperature, top_k, top_p, min_p.
struct SamplingParams {
  std::int32_t n = 1;            // independent samples of the same prompt
  std::int32_t max_tokens = 16;  // new tokens of a sample
  std::int32_t min_tokens = 0;   // stop tokens cannot be chosen before so many
  float temperature = 1;         // 0: greedy
  std::int32_t top_k = 0;        // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;       // of tokens in the prompt or the output
  float presence_penalty = 0;         // of tokens in the output
  float frequency_penalty = 0;        // of tokens in the output, per occurrence
  std::optional<std::uint64_t> seed;  // nothing: a fresh one
  bool ignore_eos = false;
  std::vector<std::int32_t> stop_token_ids;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::int32_t logprobs = -1;         // -1: none; k >= 0: of the chosen token and the k most likely ones
  std::int32_t prompt_logprobs = -1;  // likewise for the tokens of the prompt
};

struct Request {
  RequestId id = 0;
  std::vector<std::int32_t> prompt;
  SamplingParams params;
  // Of the first token. A request that has one is constrained: each further token of a sample waits until its mask has
  // been set.
  TokenMask mask = {};
  std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();
};

enum class FinishReason : std::uint8_t {
  kNone,    // not finished
  kStop,    // an end-of-text or stop token
  kLength,  // max_tokens or the context is reached
  kCancelled,
  kError,  // the model gave logits that are not numbers
};

// The text that APIs use: "stop", "length", "abort", "error"; "" for kNone.
const char* to_string(FinishReason reason);

// Natural logarithm of a token's probability under the model's own logits, before penalties and temperature.
struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;
  std::int32_t rank = 0;  // 1: the most likely
};

// One new token, or one token of the prompt whose logprobs were asked for, or the end of a sample.
struct TokenEvent {
  RequestId request = 0;
  std::int32_t sample = 0;            // 0 .. n - 1
  std::int32_t token = -1;            // -1: none came with this event (a cancelled sample)
  std::int32_t prompt_position = -1;  // of `token`, when it belongs to the prompt
  FinishReason finish = FinishReason::kNone;
  std::int32_t stop_token = -1;        // which of stop_token_ids ended the sample
  std::int32_t num_cached_tokens = 0;  // of the prompt, found in the prefix cache
  float queue_seconds = 0;             // from submission to the first step that computed a part of the request
  std::uint32_t logprob_begin = 0;     // range of StepOutput::logprobs; the first is that of `token`
  std::uint32_t logprob_end = 0;
};

// What one step gave. Reused from step to step, so that steps do not allocate.
struct StepOutput {
  std::vector<TokenEvent> events;
  std::vector<TokenLogprob> logprobs;

  void clear() {
    events.clear();
    logprobs.clear();
  }
};

}  // namespace lb
