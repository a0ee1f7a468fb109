#include "bench/scheduler_case.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "engine/engine.h"

namespace lb::bench {
namespace {

constexpr std::int64_t kVocab = 16;

class NullProgram final : public Program {
 public:
  explicit NullProgram(std::int64_t max_rows) : logits_(static_cast<std::size_t>(max_rows * kVocab)) {}

  std::span<const float> run(const StepBatch& batch) override {
    return std::span(logits_).first(batch.logit_rows.size() * static_cast<std::size_t>(kVocab));
  }
  void copy_blocks(std::span<const BlockCopy> /*copies*/) override {}
  Memory memory() const override { return {}; }

 private:
  std::vector<float> logits_;
};

class IdleEngine {
 public:
  IdleEngine(std::int64_t sequences, std::int64_t context_len, const KernelContext& context)
      : sequences_(sequences), context_len_(context_len) {
    ProgramOptions options;
    options.max_tokens = std::max<std::int64_t>(options.max_tokens, sequences);
    options.max_sequences = sequences;
    options.max_logit_rows = sequences;
    options.max_blocks = ceil_div(context_len, options.block_size);
    options.num_blocks = sequences * options.max_blocks;
    const SchedulerLimits scheduling{
        .max_tokens = options.max_tokens, .max_sequences = sequences, .max_logit_rows = sequences};
    engine_ = std::make_unique<Engine>(std::make_unique<NullProgram>(sequences), options, scheduling,
                                       EngineLimits{kVocab, context_len, {}}, context.pool, context.kernels);
  }

  void step() {
    if (!engine_->step(output_)) {
      fill();
      engine_->step(output_);
    }
  }

 private:
  void fill() {
    const auto half = static_cast<std::size_t>(context_len_ / 2);
    for (std::int64_t i = 0; i < sequences_; ++i) {
      Request request{
          .id = i, .prompt = std::vector<std::int32_t>(half, static_cast<std::int32_t>(i % kVocab)), .params = {}};
      request.params.max_tokens = static_cast<std::int32_t>(half);
      request.params.temperature = 0;
      engine_->add(std::move(request));
    }
    while (engine_->stats().output_tokens % (sequences_ * static_cast<std::int64_t>(half)) < sequences_)
      engine_->step(output_);
  }

  const std::int64_t sequences_;
  const std::int64_t context_len_;
  std::unique_ptr<Engine> engine_;
  StepOutput output_;
};

}  // namespace

KernelCase scheduler_case(const Shape& shape, const KernelContext& context) {
  if (shape[1] < 4) throw ConfigError("scheduler: expected a context of at least 4 tokens");
  auto engine = std::make_shared<IdleEngine>(shape[0], shape[1], context);
  return {.work = {}, .call = [engine] { engine->step(); }};
}

}  // namespace lb::bench
