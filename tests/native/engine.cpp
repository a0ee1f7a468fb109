// The engine's parts, and a whole engine over a program that only checks what the engine asks of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "backend/cpu/isa.h"
#include "base/error.h"
#include "engine/engine.h"

namespace py = pybind11;
using namespace py::literals;
using namespace lb;

namespace {

// The next token that the fake model gives after `context`: a function of every token of it.
std::int32_t next_token(std::span<const std::int32_t> context, std::int64_t vocab_size) {
  std::uint64_t hash = 17;
  for (const std::int32_t token : context) hash = (hash * 1000003 + static_cast<std::uint64_t>(token)) % 2147483647;
  return static_cast<std::int32_t>(hash % static_cast<std::uint64_t>(vocab_size));
}

// Its "cache" holds one token a slot. A step writes tokens to their slots and reads each context back through the block
// table: any mistake in slots, tables, sharing, copying or preemption changes what it reads, and so the output.
class FakeProgram final : public Program {
 public:
  FakeProgram(const ProgramOptions& options, std::int64_t vocab_size) : options_(options), vocab_size_(vocab_size) {
    cache_.resize(static_cast<std::size_t>(options.num_blocks * options.block_size), -1);
  }

  std::span<const float> run(const StepBatch& batch) override {
    if (fail_next_) {
      fail_next_ = false;
      throw BackendError("the fake program was told to fail");
    }
    check_batch(batch, options_, vocab_size_, options_.max_blocks * options_.block_size);
    std::vector<std::int32_t> written(batch.slots.begin(), batch.slots.end());
    std::ranges::sort(written);
    LB_CHECK(std::ranges::adjacent_find(written) == written.end(), "two tokens in one slot");
    for (std::size_t t = 0; t < batch.token_ids.size(); ++t)
      cache_[static_cast<std::size_t>(batch.slots[t])] = batch.token_ids[t];
    logits_.assign(batch.logit_rows.size() * static_cast<std::size_t>(vocab_size_), 0.0F);
    for (std::size_t r = 0; r < batch.logit_rows.size(); ++r) {
      const std::int32_t row = batch.logit_rows[r];
      const auto s =
          static_cast<std::size_t>(std::ranges::upper_bound(batch.seq_begin, row) - batch.seq_begin.begin()) - 1;
      std::vector<std::int32_t> context;
      for (std::int32_t p = 0; p <= batch.positions[static_cast<std::size_t>(row)]; ++p) {
        const std::int32_t block = batch.block_table[s * static_cast<std::size_t>(options_.max_blocks) +
                                                     static_cast<std::size_t>(p / options_.block_size)];
        context.push_back(cache_[static_cast<std::size_t>(block * options_.block_size + p % options_.block_size)]);
      }
      logits_[r * static_cast<std::size_t>(vocab_size_) + static_cast<std::size_t>(next_token(context, vocab_size_))] =
          10.0F;
    }
    return logits_;
  }

  void copy_blocks(std::span<const BlockCopy> copies) override {
    const auto size = static_cast<std::size_t>(options_.block_size);
    for (const BlockCopy& copy : copies) {
      std::copy_n(cache_.begin() + static_cast<std::ptrdiff_t>(copy.source * size), size,
                  cache_.begin() + static_cast<std::ptrdiff_t>(copy.target * size));
    }
  }

  Memory memory() const override { return {}; }
  void fail_next() { fail_next_ = true; }

 private:
  const ProgramOptions options_;
  const std::int64_t vocab_size_;
  std::vector<std::int32_t> cache_;
  std::vector<float> logits_;
  bool fail_next_ = false;
};

class FakeEngine {
 public:
  FakeEngine(std::int64_t num_blocks, std::int64_t block_size, std::int64_t max_tokens, std::int64_t max_sequences,
             std::int64_t max_model_len, std::int64_t vocab_size, bool mixes, bool prefix_caching,
             std::int64_t max_logit_rows)
      : vocab_size_(vocab_size), pool_(2) {
    ProgramOptions options;
    options.max_tokens = max_tokens;
    options.max_sequences = max_sequences;
    options.max_logit_rows = max_logit_rows;
    options.max_blocks = (max_model_len + block_size - 1) / block_size;
    options.block_size = block_size;
    options.num_blocks = num_blocks;
    auto program = std::make_unique<FakeProgram>(options, vocab_size);
    program_ = program.get();
    engine_ = std::make_unique<Engine>(
        std::move(program), options, SchedulerLimits{max_tokens, max_sequences, max_logit_rows, mixes, prefix_caching},
        EngineLimits{vocab_size, max_model_len, {}}, pool_, *cpu::available_kernels().front());
  }

  void add(RequestId id, std::vector<std::int32_t> prompt, std::int32_t max_tokens, std::int32_t n,
           std::int32_t prompt_logprobs, TokenMask mask) {
    Request request{id, std::move(prompt), {}, std::move(mask)};
    request.params.max_tokens = max_tokens;
    request.params.temperature = 0;
    request.params.n = n;
    request.params.prompt_logprobs = prompt_logprobs;
    engine_->check(request);
    engine_->add(std::move(request));
  }

  void set_token_mask(RequestId id, std::int32_t sample, const TokenMask& mask) {
    engine_->check_mask(mask);
    engine_->set_token_mask(id, sample, mask);
  }

  void cancel(RequestId id, std::optional<std::int32_t> sample) { engine_->cancel(id, sample); }
  void fail_next() { program_->fail_next(); }

  // (more to do, [(request, sample, token, prompt_position, finish_reason)])
  std::pair<bool, std::vector<std::tuple<RequestId, int, int, int, std::string>>> step() {
    const bool more = engine_->step(output_);
    std::vector<std::tuple<RequestId, int, int, int, std::string>> events;
    for (const TokenEvent& e : output_.events)
      events.emplace_back(e.request, e.sample, e.token, e.prompt_position, to_string(e.finish));
    return {more, events};
  }

  std::int32_t next(const std::vector<std::int32_t>& context) const { return next_token(context, vocab_size_); }

  py::dict stats() const {
    const EngineStats s = engine_->stats();
    return py::dict("num_running"_a = s.num_running, "num_waiting"_a = s.num_waiting, "num_blocks"_a = s.num_blocks,
                    "num_free_blocks"_a = s.num_free_blocks, "num_preemptions"_a = s.num_preemptions,
                    "prefix_hits"_a = s.prefix_hits);
  }

 private:
  std::int64_t vocab_size_;
  ThreadPool pool_;
  FakeProgram* program_ = nullptr;  // owned by the engine
  std::unique_ptr<Engine> engine_;
  StepOutput output_;
};

// One choice of the sampler, without an engine.
std::int32_t choose(const std::string& isa, const std::vector<float>& logits, const std::vector<std::int32_t>& prompt,
                    const std::vector<std::int32_t>& output, const SamplingParams& params,
                    const std::vector<std::int32_t>& eos) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    if (isa != kernels->name) continue;
    Sampler sampler(*kernels, static_cast<std::int64_t>(logits.size()), eos);
    Sequence sequence;
    sequence.request = std::make_shared<const Request>(Request{0, prompt, params});
    sequence.seed = params.seed.value_or(0);
    sequence.tokens = prompt;
    sequence.tokens.insert(sequence.tokens.end(), output.begin(), output.end());
    const std::int32_t token = sampler.choose(logits, sequence);
    LB_CHECK(sampler.choose(logits, sequence) == token, "the sampler's scratch memory is not as it was");
    return token;
  }
  throw std::invalid_argument("no level " + isa);
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<BlockPool>(m, "BlockPool")
      .def(py::init<std::int64_t, std::int64_t>(), "num_blocks"_a, "block_size"_a)
      .def("num_free", &BlockPool::num_free)
      .def("references", &BlockPool::references)
      .def("allocate", &BlockPool::allocate)
      .def("acquire", &BlockPool::acquire)
      .def("release", &BlockPool::release)
      .def("find",
           [](const BlockPool& pool, PrefixId before, const std::vector<std::int32_t>& tokens) {
             const BlockPool::Match match = pool.find(before, tokens);
             return std::pair(match.block, match.prefix);
           })
      .def("publish", [](BlockPool& pool, std::int32_t block, PrefixId before,
                         const std::vector<std::int32_t>& tokens) { return pool.publish(block, before, tokens); })
      .def("clear_prefixes", &BlockPool::clear_prefixes)
      .def("check_invariants", &BlockPool::check_invariants);
  m.def("prefix_hash",
        [](PrefixId before, const std::vector<std::int32_t>& tokens) { return prefix_hash(before, tokens); });
  py::class_<FakeEngine>(m, "FakeEngine")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool,
                    std::int64_t>(),
           py::kw_only(), "num_blocks"_a, "block_size"_a, "max_tokens"_a, "max_sequences"_a, "max_model_len"_a,
           "vocab_size"_a = 50, "mixes"_a = true, "prefix_caching"_a = true, "max_logit_rows"_a = 64)
      .def("add", &FakeEngine::add, "request"_a, "prompt"_a, "max_tokens"_a, "n"_a = 1, "prompt_logprobs"_a = -1,
           "mask"_a = TokenMask{})
      .def("set_token_mask", &FakeEngine::set_token_mask)
      .def("cancel", &FakeEngine::cancel, "request"_a, "sample"_a = py::none())
      .def("fail_next", &FakeEngine::fail_next)
      .def("step", &FakeEngine::step)
      .def("next", &FakeEngine::next)
      .def("stats", &FakeEngine::stats);
  m.def("choose", &choose, "isa"_a, "logits"_a, "prompt"_a, "output"_a, "params"_a,
        "eos"_a = std::vector<std::int32_t>{});
}
