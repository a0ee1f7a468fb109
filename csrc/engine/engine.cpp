#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/memory.h"

namespace lb {

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "abort";
    case FinishReason::kError: return "error";
  }
  return "";
}

Engine::Engine(std::unique_ptr<Program> program, const ProgramOptions& options, const SchedulerLimits& scheduling,
               EngineLimits limits, ThreadPool& pool, const cpu::Kernels& kernels)
    : program_(std::move(program)),
      options_(options),
      limits_(std::move(limits)),
      threads_(pool),
      pool_(options.num_blocks, options.block_size),
      scheduler_(pool_, scheduling) {
  for (int i = 0; i < pool.size(); ++i) samplers_.emplace_back(kernels, limits_.vocab_size, limits_.eos_token_ids);
  const auto tokens = static_cast<std::size_t>(options.max_tokens);
  const auto sequences = static_cast<std::size_t>(options.max_sequences);
  for (auto* array : {&batch_.token_ids, &batch_.positions, &batch_.slots}) array->reserve(tokens);
  batch_.seq_begin.reserve(sequences + 1);
  batch_.context_len.reserve(sequences);
  batch_.block_table.reserve(sequences * static_cast<std::size_t>(options.max_blocks));
  batch_.logit_rows.reserve(static_cast<std::size_t>(options.max_logit_rows));
  plan_.chunks.reserve(sequences);
  plan_.copies.reserve(sequences);
  choices_.reserve(sequences);
}

void Engine::add(Request request) {
  auto shared = std::make_shared<const Request>(std::move(request));
  const SamplingParams& params = shared->params;
  auto sequence = std::make_unique<Sequence>();
  sequence->request = shared;
  sequence->seed = params.seed ? *params.seed : random_seed();
  sequence->forks = params.n - 1;
  sequence->mask = shared->mask;
  sequence->max_length =
      std::min(static_cast<std::int64_t>(shared->prompt.size()) + params.max_tokens, limits_.max_model_len);
  sequence->tokens.reserve(static_cast<std::size_t>(sequence->max_length));
  sequence->tokens.insert(sequence->tokens.end(), shared->prompt.begin(), shared->prompt.end());
  sequence->blocks.reserve(static_cast<std::size_t>(ceil_div(sequence->max_length, options_.block_size)));
  scheduler_.add(std::move(sequence));
}

void Engine::set_token_mask(RequestId id, std::int32_t sample, TokenMask mask) {
  Sequence* const sequence = scheduler_.find(id, sample);
  if (sequence == nullptr || !sequence->awaits_mask) return;
  sequence->mask = std::move(mask);
  sequence->awaits_mask = false;
}

// The same in all processes that share the model: they must choose the same tokens.
std::uint64_t Engine::random_seed() {
  const auto half = [this] { return static_cast<std::uint64_t>(agree(std::random_device{}() & 0x7fffffffU)); };
  const std::uint64_t high = half();
  return high << 32 ^ half();
}

void Engine::cancel(RequestId id, std::optional<std::int32_t> sample) { cancelled_.emplace(id, sample); }

bool Engine::drop_cancelled(StepOutput& output) {
  if (cancelled_.empty()) return false;
  scheduler_.remove_if([&](const Sequence& sequence) {
    const RequestId id = sequence.request->id;
    const bool alone = sequence.forks == 0 && cancelled_.contains({id, sequence.sample});
    if (!alone && !cancelled_.contains({id, std::nullopt})) return false;
    for (std::int32_t i = 0; i <= sequence.forks; ++i) {  // samples not split off yet end with it
      TokenEvent& event = output.events.emplace_back();
      event.request = id;
      event.sample = sequence.sample + i;
      event.finish = FinishReason::kCancelled;
    }
    return true;
  });
  cancelled_.clear();
  return !output.events.empty();
}

bool Engine::step(StepOutput& output) {
  output.clear();
  try {
    return run_step(output);
  } catch (...) {
    abandon();
    throw;
  }
}

bool Engine::run_step(StepOutput& output) {
  const bool dropped = drop_cancelled(output);
  scheduler_.schedule(plan_);
  if (plan_.chunks.empty()) return dropped;
  if (!plan_.copies.empty()) program_->copy_blocks(plan_.copies);
  const std::span<const float> logits = program_->run(assemble());
  ++num_steps_;
  sample(logits);
  accept(logits, output);
  return true;
}

// After a failure nothing is known about the cache: forgets every request and every prefix.
void Engine::abandon() {
  scheduler_.remove_if([](const Sequence&) { return true; });
  pool_.clear_prefixes();
}

StepBatch Engine::assemble() {
  Batch& b = batch_;
  for (auto* array :
       {&b.token_ids, &b.positions, &b.slots, &b.seq_begin, &b.context_len, &b.block_table, &b.logit_rows})
    array->clear();
  b.seq_begin.push_back(0);
  for (const ScheduledChunk& chunk : plan_.chunks) {
    const Sequence& sequence = *chunk.sequence;
    const std::int64_t end = sequence.num_computed + chunk.num_tokens;
    for (std::int64_t position = sequence.num_computed; position < end; ++position) {
      const std::int64_t block = sequence.blocks[static_cast<std::size_t>(position / options_.block_size)];
      b.token_ids.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      b.positions.push_back(static_cast<std::int32_t>(position));
      b.slots.push_back(static_cast<std::int32_t>(block * options_.block_size + position % options_.block_size));
    }
    const auto num_tokens = static_cast<std::int64_t>(b.token_ids.size());
    b.seq_begin.push_back(static_cast<std::int32_t>(num_tokens));
    b.context_len.push_back(static_cast<std::int32_t>(end));
    b.block_table.insert(b.block_table.end(), sequence.blocks.begin(), sequence.blocks.end());
    b.block_table.resize(b.context_len.size() * static_cast<std::size_t>(options_.max_blocks), -1);
    for (std::int64_t i = num_tokens - chunk.num_logit_rows; i < num_tokens; ++i)
      b.logit_rows.push_back(static_cast<std::int32_t>(i));
  }
  return {b.token_ids, b.positions, b.slots, b.seq_begin, b.context_len, b.block_table, b.logit_rows};
}

std::span<const float> Engine::row(std::span<const float> logits, std::size_t index) const {
  const auto vocab = static_cast<std::size_t>(limits_.vocab_size);
  return logits.subspan(index * vocab, vocab);
}

// Chooses a token for every chunk that ends its sequence, on all threads.
void Engine::sample(std::span<const float> logits) {
  choices_.clear();
  std::size_t rows = 0;
  for (const ScheduledChunk& chunk : plan_.chunks) {
    rows += static_cast<std::size_t>(chunk.num_logit_rows);
    if (chunk.num_tokens == chunk.sequence->num_uncomputed()) choices_.push_back({chunk.sequence, rows - 1});
  }
  const auto choose = [&](Choice& choice, int member) {
    choice.token = samplers_[static_cast<std::size_t>(member)].choose(row(logits, choice.row), *choice.sequence);
  };
  if (choices_.size() == 1) {  // not worth waking the team
    choose(choices_.front(), 0);
    return;
  }
  std::atomic<std::size_t> next{0};
  threads_.run([&](int member) {
    for (std::size_t i = next++; i < choices_.size(); i = next++) choose(choices_[i], member);
  });
}

// Takes the step's tokens into the sequences.
void Engine::accept(std::span<const float> logits, StepOutput& output) {
  std::size_t first_row = 0;
  for (const ScheduledChunk& chunk : plan_.chunks) {
    const std::int64_t prompt_left = chunk.sequence->prompt_length() - chunk.sequence->num_computed;
    prompt_tokens_ += std::clamp<std::int64_t>(prompt_left, 0, chunk.num_tokens);
    if (chunk.sequence->params().prompt_logprobs >= 0) give_prompt_logprobs(chunk, first_row, logits, output);
    first_row += static_cast<std::size_t>(chunk.num_logit_rows);
    scheduler_.complete(chunk);
  }
  fork_samples(logits);
  for (const Choice& choice : choices_) accept_token(choice, logits, output);
}

// A request for several samples computes its prompt once; here the others split off, each with a choice of its own.
void Engine::fork_samples(std::span<const float> logits) {
  const std::size_t count = choices_.size();
  for (std::size_t i = 0; i < count; ++i) {
    Sequence& parent = *choices_[i].sequence;
    for (std::int32_t sample = 1; sample <= parent.forks; ++sample) {
      Sequence& child = scheduler_.fork(parent);
      child.sample = sample;
      child.seed = parent.seed + static_cast<std::uint64_t>(sample);
      choices_.push_back({&child, choices_[i].row, samplers_.front().choose(row(logits, choices_[i].row), child)});
    }
    parent.forks = 0;
  }
}

void Engine::give_prompt_logprobs(const ScheduledChunk& chunk, std::size_t first_row, std::span<const float> logits,
                                  StepOutput& output) {
  Sequence& sequence = *chunk.sequence;
  const std::int32_t num_top = sequence.params().prompt_logprobs;
  const std::int64_t begin = sequence.num_computed;
  // The logits at a position are about the token after it. What was given before a preemption is not given again.
  for (std::int64_t position = begin; position < begin + chunk.num_tokens; ++position) {
    const std::int64_t next = position + 1;
    if (next >= sequence.prompt_length() || next <= sequence.num_prompt_logprobs) continue;
    sequence.num_prompt_logprobs = next;
    TokenEvent& event = output.events.emplace_back();
    event.request = sequence.request->id;
    event.token = sequence.tokens[static_cast<std::size_t>(next)];
    event.prompt_position = static_cast<std::int32_t>(next);
    event.logprob_begin = static_cast<std::uint32_t>(output.logprobs.size());
    samplers_.front().append_logprobs(row(logits, first_row + static_cast<std::size_t>(position - begin)), event.token,
                                      num_top, output.logprobs);
    event.logprob_end = static_cast<std::uint32_t>(output.logprobs.size());
  }
}

void Engine::accept_token(const Choice& choice, std::span<const float> logits, StepOutput& output) {
  Sequence& sequence = *choice.sequence;
  TokenEvent& event = output.events.emplace_back();
  event.request = sequence.request->id;
  event.sample = sequence.sample;
  event.num_cached_tokens = static_cast<std::int32_t>(sequence.num_cached_tokens);
  event.queue_seconds = sequence.queue_seconds;
  if (choice.token < 0) {
    event.finish = FinishReason::kError;
    scheduler_.remove(sequence);
    return;
  }
  ++output_tokens_;
  event.token = choice.token;
  if (sequence.params().logprobs >= 0) {
    event.logprob_begin = static_cast<std::uint32_t>(output.logprobs.size());
    samplers_.front().append_logprobs(row(logits, choice.row), choice.token, sequence.params().logprobs,
                                      output.logprobs);
    event.logprob_end = static_cast<std::uint32_t>(output.logprobs.size());
  }
  sequence.tokens.push_back(choice.token);
  sequence.awaits_mask = !sequence.mask.empty();
  event.finish = finish_reason(sequence, choice.token, event.stop_token);
  if (event.finish != FinishReason::kNone) scheduler_.remove(sequence);
}

FinishReason Engine::finish_reason(const Sequence& sequence, std::int32_t token, std::int32_t& stop_token) const {
  const SamplingParams& params = sequence.params();
  if (!params.ignore_eos && std::ranges::find(limits_.eos_token_ids, token) != limits_.eos_token_ids.end())
    return FinishReason::kStop;
  if (std::ranges::find(params.stop_token_ids, token) != params.stop_token_ids.end()) {
    stop_token = token;
    return FinishReason::kStop;
  }
  return sequence.length() == sequence.max_length ? FinishReason::kLength : FinishReason::kNone;
}

void Engine::forward(const StepBatch& batch, std::span<float> logits) {
  if (!scheduler_.idle()) {
    throw RequestError(
        "forward() was called while requests are being served; both use the same cache, wait for them or cancel them");
  }
  check_batch(batch, options_, limits_.vocab_size, limits_.max_model_len);
  pool_.clear_prefixes();
  const std::span<const float> result = program_->run(batch);
  LB_CHECK(result.size() == logits.size(), result.size(), " logits, room for ", logits.size());
  std::ranges::copy(result, logits.begin());
}

EngineStats Engine::stats() const {
  return {.num_running = scheduler_.num_running(),
          .num_waiting = scheduler_.num_waiting(),
          .num_blocks = pool_.num_blocks(),
          .num_free_blocks = pool_.num_free(),
          .num_preemptions = scheduler_.num_preemptions(),
          .prefix_queries = scheduler_.prefix_queries(),
          .prefix_hits = scheduler_.prefix_hits(),
          .prompt_tokens = prompt_tokens_,
          .output_tokens = output_tokens_,
          .num_steps = num_steps_};
}

}  // namespace lb
