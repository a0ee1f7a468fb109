#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/memory.h"

namespace lb {

Scheduler::Scheduler(BlockPool& pool, const SchedulerLimits& limits) : pool_(pool), limits_(limits) {
  LB_CHECK(limits.max_tokens >= limits.max_sequences && limits.max_logit_rows >= limits.max_sequences);
  running_.reserve(static_cast<std::size_t>(limits.max_sequences));
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }

Sequence& Scheduler::fork(const Sequence& parent) {
  auto child = std::make_unique<Sequence>(parent);
  child->tokens.reserve(static_cast<std::size_t>(child->max_length));
  child->blocks.reserve(parent.blocks.capacity());
  for (const std::int32_t block : child->blocks) pool_.acquire(block);
  child->forks = 0;
  running_.push_back(std::move(child));
  return *running_.back();
}

void Scheduler::schedule(StepPlan& plan) {
  plan.chunks.clear();
  plan.copies.clear();
  tokens_left_ = limits_.max_tokens;
  logit_rows_left_ = limits_.max_logit_rows;
  preempted_ = false;
  if (limits_.mixes_prefill_and_decode) {
    schedule_running(plan, /*decoding=*/true);
    schedule_running(plan, /*decoding=*/false);
    admit_waiting(plan);
  } else {  // prompts first: a sequence in prefill holds blocks and gives nothing yet
    schedule_running(plan, /*decoding=*/false);
    admit_waiting(plan);
    if (plan.chunks.empty()) schedule_running(plan, /*decoding=*/true);
  }
  LB_CHECK(!plan.chunks.empty() || idle() || awaits_mask(), num_running(), " running and ", num_waiting(),
           " waiting sequences, but no step");
}

bool Scheduler::awaits_mask() const {
  const auto awaits = [](const std::unique_ptr<Sequence>& sequence) { return sequence->awaits_mask; };
  return std::ranges::any_of(running_, awaits) || std::ranges::any_of(waiting_, awaits);
}

Sequence* Scheduler::find(RequestId request, std::int32_t sample) {
  const auto matches = [&](const std::unique_ptr<Sequence>& sequence) {
    return sequence->request->id == request && sequence->sample == sample;
  };
  if (const auto found = std::ranges::find_if(running_, matches); found != running_.end()) return found->get();
  if (const auto found = std::ranges::find_if(waiting_, matches); found != waiting_.end()) return found->get();
  return nullptr;
}

void Scheduler::schedule_running(StepPlan& plan, bool decoding) {
  for (std::size_t i = 0; i < running_.size() && tokens_left_ > 0; ++i) {
    Sequence& sequence = *running_[i];
    if ((sequence.num_uncomputed() == 1) != decoding) continue;
    const std::int64_t num_tokens = chunk_tokens(sequence);
    if (num_tokens == 0) continue;
    bool ready = reserve(sequence, num_tokens, plan);
    while (!ready && make_room(sequence, plan)) ready = reserve(sequence, num_tokens, plan);
    if (ready) {
      append(plan, sequence, num_tokens);
    } else if (decoding) {  // all others are older or in the step already: let them finish first
      preempt(i--);
    }
  }
}

void Scheduler::admit_waiting(StepPlan& plan) {
  std::int64_t slots = 0;
  for (const auto& sequence : running_) slots += sequence->slots();
  while (!waiting_.empty() && !preempted_ && tokens_left_ > 0) {
    Sequence& sequence = *waiting_.front();
    if (slots + sequence.slots() > limits_.max_sequences) return;
    use_cached_prefix(sequence);
    const std::int64_t num_tokens = chunk_tokens(sequence);
    // Admit only what can finish its prompt: otherwise it would soon be preempted, having computed in vain.
    const std::int64_t missing =
        ceil_div(sequence.length(), pool_.block_size()) - static_cast<std::int64_t>(sequence.blocks.size());
    if (num_tokens == 0 || missing > pool_.num_free()) {
      release_blocks(sequence);
      return;
    }
    if (!sequence.was_admitted) {
      sequence.was_admitted = true;
      sequence.num_cached_tokens = sequence.num_computed;
      sequence.queue_seconds =
          std::chrono::duration<float>(std::chrono::steady_clock::now() - sequence.request->submitted).count();
    }
    prefix_queries_ += sequence.length();
    prefix_hits_ += sequence.num_computed;
    slots += sequence.slots();
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    LB_CHECK(reserve(sequence, num_tokens, plan), "blocks were counted before");
    append(plan, sequence, num_tokens);
  }
}

std::int64_t Scheduler::chunk_tokens(const Sequence& sequence) const {
  const std::int64_t allowed = sequence.num_uncomputed() - (sequence.awaits_mask ? 1 : 0);
  const std::int64_t num_tokens = std::min(allowed, tokens_left_);
  if (sequence.params().prompt_logprobs >= 0 && sequence.num_computed < sequence.prompt_length()) {
    return std::min(num_tokens, logit_rows_left_);  // every token of the chunk wants logits
  }
  return num_tokens == sequence.num_uncomputed() && logit_rows_left_ == 0 ? 0 : num_tokens;
}

void Scheduler::append(StepPlan& plan, Sequence& sequence, std::int64_t num_tokens) {
  const bool wants_prompt = sequence.params().prompt_logprobs >= 0 && sequence.num_computed < sequence.prompt_length();
  const bool ends = num_tokens == sequence.num_uncomputed();
  const std::int64_t num_rows = wants_prompt ? num_tokens : ends ? 1 : 0;
  plan.chunks.push_back({&sequence, num_tokens, num_rows});
  tokens_left_ -= num_tokens;
  logit_rows_left_ -= num_rows;
}

// Makes sure that the next `num_tokens` tokens have blocks of their own to be written to. Takes nothing when it fails.
bool Scheduler::reserve(Sequence& sequence, std::int64_t num_tokens, StepPlan& plan) {
  const std::int64_t end = sequence.num_computed + num_tokens;
  const std::int64_t missing = ceil_div(end, pool_.block_size()) - static_cast<std::int64_t>(sequence.blocks.size());
  const auto first = static_cast<std::size_t>(sequence.num_computed / pool_.block_size());
  // Only the first block written to can be shared: a fork's partly filled last block.
  const bool copy = first < sequence.blocks.size() && pool_.references(sequence.blocks[first]) > 1;
  if (missing + (copy ? 1 : 0) > pool_.num_free()) return false;
  if (copy) {
    const std::int32_t own = pool_.allocate();
    plan.copies.push_back({sequence.blocks[first], own});
    pool_.release(sequence.blocks[first]);
    sequence.blocks[first] = own;
  }
  for (std::int64_t i = 0; i < missing; ++i) sequence.blocks.push_back(pool_.allocate());
  return true;
}

// Preempts the youngest running sequence that is younger than `sequence` and not in the step.
bool Scheduler::make_room(const Sequence& sequence, const StepPlan& plan) {
  for (std::size_t i = running_.size(); i-- > 0 && running_[i].get() != &sequence;) {
    const auto planned = [&](const ScheduledChunk& chunk) { return chunk.sequence == running_[i].get(); };
    if (std::ranges::any_of(plan.chunks, planned)) continue;
    preempt(i);
    return true;
  }
  return false;
}

void Scheduler::preempt(std::size_t position) {
  std::unique_ptr<Sequence> victim = std::move(running_[position]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(position));
  release_blocks(*victim);
  waiting_.push_front(std::move(victim));
  preempted_ = true;
  ++num_preemptions_;
}

void Scheduler::use_cached_prefix(Sequence& sequence) {
  if (!limits_.prefix_caching || sequence.params().prompt_logprobs >= 0) return;  // those need every row computed
  const std::int64_t block_size = pool_.block_size();
  // The last token is always computed: its logits are wanted.
  const std::int64_t usable = (sequence.length() - 1) / block_size;
  while (sequence.num_published < usable) {
    const auto tokens = std::span(sequence.tokens)
                            .subspan(static_cast<std::size_t>(sequence.num_published * block_size),
                                     static_cast<std::size_t>(block_size));
    const BlockPool::Match match = pool_.find(sequence.last_prefix, tokens);
    if (match.block < 0) break;
    pool_.acquire(match.block);
    sequence.blocks.push_back(match.block);
    sequence.last_prefix = match.prefix;
    ++sequence.num_published;
  }
  sequence.num_computed = sequence.num_published * block_size;
}

void Scheduler::complete(const ScheduledChunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  sequence.num_computed += chunk.num_tokens;
  if (!limits_.prefix_caching) return;
  const std::int64_t block_size = pool_.block_size();
  while ((sequence.num_published + 1) * block_size <= sequence.num_computed) {
    const auto tokens = std::span(sequence.tokens)
                            .subspan(static_cast<std::size_t>(sequence.num_published * block_size),
                                     static_cast<std::size_t>(block_size));
    const std::int32_t block = sequence.blocks[static_cast<std::size_t>(sequence.num_published)];
    sequence.last_prefix = pool_.publish(block, sequence.last_prefix, tokens);
    ++sequence.num_published;
  }
}

void Scheduler::release_blocks(Sequence& sequence) {
  // Last block first: when room is needed, the end of a prefix is forgotten before its beginning.
  while (!sequence.blocks.empty()) {
    pool_.release(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  sequence.num_computed = 0;
  sequence.num_published = 0;
  sequence.last_prefix = kNoPrefix;
}

}  // namespace lb
