// Continuous batching over one program: requests in, tokens out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "engine/block_pool.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

namespace lb {

// What a model and its program allow.
struct EngineLimits {
  std::int64_t vocab_size = 0;
  std::int64_t max_model_len = 0;  // prompt and output of a sample
  std::vector<std::int32_t> eos_token_ids;
};

struct EngineStats {
  std::int64_t num_running = 0;  // sequences
  std::int64_t num_waiting = 0;
  std::int64_t num_blocks = 0;
  std::int64_t num_free_blocks = 0;
  std::int64_t num_preemptions = 0;  // the rest: since the start
  std::int64_t prefix_queries = 0;   // tokens
  std::int64_t prefix_hits = 0;
  std::int64_t prompt_tokens = 0;  // computed
  std::int64_t output_tokens = 0;
  std::int64_t num_steps = 0;
};

// Owns the sequences, the block pool and the program. One thread drives it.
class Engine {
 public:
  Engine(std::unique_ptr<Program> program, const ProgramOptions& options, const SchedulerLimits& scheduling,
         EngineLimits limits, ThreadPool& pool, const cpu::Kernels& kernels);

  // Throws RequestError, naming the parameter, unless the request can be served: ids, ranges, length, room in the pool.
  // Safe to call from any thread.
  void check(const Request& request) const;

  // Throws RequestError unless a mask fits the vocabulary and allows a token of it. Safe to call from any thread.
  void check_mask(const TokenMask& mask) const;

  // The smallest value that any process gives of those that share the model; see Program::agree().
  std::int64_t agree(std::int64_t value) { return program_->agree(value); }

  // Queues a request that check() accepts.
  void add(Request request);
  // Gives the mask of the next token of a constrained sample. Ignored when the sample has ended.
  void set_token_mask(RequestId id, std::int32_t sample, TokenMask mask);
  // Ends a request, or one sample of it that has given a token; they give a last event in the next step. Unknown ones
  // are ignored: they may just have ended.
  void cancel(RequestId id, std::optional<std::int32_t> sample = {});

  // Computes one step. Returns false, with nothing in `output`, when there is nothing to do. After an exception of the
  // backend all requests are gone; the engine can be used again if the backend can.
  bool step(StepOutput& output);

  // Whether all requests have ended.
  bool idle() const { return scheduler_.idle(); }

  // Runs one batch of a caller who owns scheduling and block tables, and copies its logits [R, V] to `logits`. Throws
  // RequestError for a batch that does not fit or while requests are being served. Forgets cached prefixes.
  void forward(const StepBatch& batch, std::span<float> logits);

  EngineStats stats() const;
  const ProgramOptions& options() const { return options_; }
  const EngineLimits& limits() const { return limits_; }
  Program& program() { return *program_; }

 private:
  struct Batch {  // the arrays behind a StepBatch
    std::vector<std::int32_t> token_ids, positions, slots, seq_begin, context_len, block_table, logit_rows;
  };
  struct Choice {  // a token that is to be sampled: filled by many threads, used by one
    Sequence* sequence = nullptr;
    std::size_t row = 0;  // of the logits
    std::int32_t token = -1;
  };

  bool run_step(StepOutput& output);
  void abandon();
  StepBatch assemble();
  void sample(std::span<const float> logits);
  void accept(std::span<const float> logits, StepOutput& output);
  void fork_samples(std::span<const float> logits);
  void give_prompt_logprobs(const ScheduledChunk& chunk, std::size_t first_row, std::span<const float> logits,
                            StepOutput& output);
  void accept_token(const Choice& choice, std::span<const float> logits, StepOutput& output);
  FinishReason finish_reason(const Sequence& sequence, std::int32_t token, std::int32_t& stop_token) const;
  std::uint64_t random_seed();
  bool drop_cancelled(StepOutput& output);
  std::span<const float> row(std::span<const float> logits, std::size_t index) const;

  std::unique_ptr<Program> program_;
  const ProgramOptions options_;
  const EngineLimits limits_;
  ThreadPool& threads_;
  BlockPool pool_;
  Scheduler scheduler_;
  std::vector<Sampler> samplers_;  // one per thread
  StepPlan plan_;
  Batch batch_;
  std::vector<Choice> choices_;
  std::set<std::pair<RequestId, std::optional<std::int32_t>>> cancelled_;  // since the last step
  std::int64_t prompt_tokens_ = 0;
  std::int64_t output_tokens_ = 0;
  std::int64_t num_steps_ = 0;
};

}  // namespace lb
