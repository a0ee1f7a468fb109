#include "bench/model_bench.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>
#include <unordered_set>
#include <utility>

#include "backend/cpu/isa.h"
#include "base/error.h"
#include "bench/presets.h"
#include "bench/random_weights.h"
#include "engine/engine.h"
#include "model/model.h"

namespace lb::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Passes steps on to a program, and notes what each of them had to do and how long it took.
class ObservedProgram final : public Program {
 public:
  ObservedProgram(std::unique_ptr<Program> program, Floor floor) : program_(std::move(program)), floor_(floor) {}

  std::span<const float> run(const StepBatch& batch) override {
    work_ = floor_.of(batch);
    num_tokens_ = static_cast<std::int64_t>(batch.token_ids.size());
    const Clock::time_point start = Clock::now();
    const std::span<const float> logits = program_->run(batch);
    seconds_ = seconds_since(start);
    if (hashing_) hash(logits);
    return logits;
  }
  void copy_blocks(std::span<const BlockCopy> copies) override { program_->copy_blocks(copies); }
  std::vector<StepTime> take_step_times() override { return program_->take_step_times(); }
  Memory memory() const override { return program_->memory(); }

  // Of the last step.
  const Work& work() const { return work_; }
  std::int64_t num_tokens() const { return num_tokens_; }
  double seconds() const { return seconds_; }

  void start_hash() {
    hashing_ = true;
    hash_ = 0xcbf29ce484222325ULL;
  }
  std::uint64_t finish_hash() {
    hashing_ = false;
    return hash_;
  }

 private:
  // FNV-1a over the bits of the logits, a word at a time.
  void hash(std::span<const float> logits) {
    for (const float x : logits) {
      if (!std::isfinite(x)) throw BackendError("the model gave logits that are not numbers");
      hash_ = (hash_ ^ std::bit_cast<std::uint32_t>(x)) * 0x100000001b3ULL;
    }
  }

  std::unique_ptr<Program> program_;
  const Floor floor_;
  Work work_;
  std::int64_t num_tokens_ = 0;
  double seconds_ = 0;
  bool hashing_ = false;
  std::uint64_t hash_ = 0;
};

// Some steps of an engine: until every prompt has its first token, or from there on.
struct Phase {
  std::vector<double> seconds;  // of each step
  std::vector<Work> work;
  std::vector<OpTime> ops;        // of all steps
  std::vector<double> fractions;  // of the limit beside them, of stretches of steps

  double total_seconds() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }
  Work total_work() const {
    Work total;
    for (const Work& each : work) total += each;
    return total;
  }
};

struct Pass {
  Phase prefill;
  Phase decode;  // of the steps in which all sequences get a token
  std::vector<std::int32_t> tokens;
};

void add_op_times(const std::vector<OpTime>& times, std::vector<OpTime>& sums) {
  if (sums.empty()) sums.resize(times.size());
  for (std::size_t i = 0; i < times.size(); ++i) sums[i] = {times[i].name, sums[i].seconds + times[i].seconds};
}

// Compares stretches of steps with the machine as it is just before and after them.
class Beside {
 public:
  explicit Beside(Limits* limits) : limits_(limits), before_(read()) {}

  void add(const Work& work, double seconds, std::vector<double>& fractions) {
    work_ += work;
    seconds_ += seconds;
    if (seconds_ >= kStretchSeconds) finish(fractions);
  }
  // Ends the stretch; the next step begins another.
  void finish(std::vector<double>& fractions) {
    if (limits_ == nullptr || seconds_ == 0) return;
    const double after = read();
    const Speeds speeds{(before_ + after) / 2, limits_->best().flops};
    fractions.push_back(speeds.seconds(work_) / seconds_);
    before_ = after;
    work_ = {};
    seconds_ = 0;
  }

 private:
  static constexpr double kStretchSeconds = 0.03;  // a reading takes a tenth of it

  double read() const { return limits_ == nullptr ? 0 : limits_->read_beside(); }

  Limits* const limits_;
  double before_;
  Work work_;
  double seconds_ = 0;
};

class ModelBench {
 public:
  ModelBench(const std::string& preset_name, const Options& options, Backend& backend, ThreadPool& pool, Limits* limits,
             Report& report);

  void run(const Workload& workload);

 private:
  // Compares with `limits`, where there are any, as they are beside the steps.
  Pass run_once(const Workload& workload, Limits* limits);
  void add_requests(const Workload& workload);
  std::vector<OpTime> take_op_times(double step_seconds);
  void report(const Workload& workload, const std::string& kind, std::vector<Phase> phases, std::uint64_t hash);

  const std::string name_;
  const Options& options_;
  Limits* const limits_;  // may be null
  Report& report_;
  std::int64_t vocab_size_ = 0;
  ObservedProgram* program_ = nullptr;  // the engine's
  std::unique_ptr<Engine> engine_;
};

ProgramOptions program_options(const Options& options, Backend& backend) {
  ProgramOptions program;
  program.max_tokens = options.max_num_batched_tokens;
  program.block_size = round_up(program.block_size, backend.capabilities().block_size_multiple);
  program.max_sequences = 1;
  program.activation_dtype = options.activation_dtype;
  program.time_steps = options.time_ops;
  for (const Workload& workload : options.workloads) {
    const std::int64_t blocks = ceil_div(workload.prompt + workload.generate, program.block_size);
    program.max_blocks = std::max(program.max_blocks, blocks);
    program.num_blocks = std::max(program.num_blocks, blocks * workload.batch);
    program.max_sequences = std::max(program.max_sequences, workload.batch);
  }
  program.max_logit_rows = program.max_sequences;
  program.max_tokens = std::max(program.max_tokens, program.max_sequences);
  return program;
}

ModelBench::ModelBench(const std::string& preset_name, const Options& options, Backend& backend, ThreadPool& pool,
                       Limits* limits, Report& report)
    : name_(preset_name), options_(options), limits_(limits), report_(report) {
  const ProgramOptions program = program_options(options, backend);
  const std::int64_t max_model_len = program.max_blocks * program.block_size;
  const ModelConfig config = preset(preset_name, options.num_layers, max_model_len);
  vocab_size_ = config.vocab_size;
  const ModelGraph graph = build_model(config);
  const WeightTable weights = random_weights(graph, options.dtype, options.seed);
  const Clock::time_point start = Clock::now();
  auto bare =
      backend.compile(graph, [&](const std::string& name) -> const StoredTensor& { return weights.at(name); }, program);
  const double load_seconds = seconds_since(start);
  const Program::Memory memory = bare->memory();
  auto compiled =
      std::make_unique<ObservedProgram>(std::move(bare), Floor(graph, memory.weights, options.activation_dtype));
  program_ = compiled.get();
  report.add(ModelFacts{preset_name, config.num_layers, memory.weights, memory.cache, memory.arena, load_seconds});
  const SchedulerLimits scheduling{.max_tokens = program.max_tokens,
                                   .max_sequences = program.max_sequences,
                                   .max_logit_rows = program.max_logit_rows,
                                   .mixes_prefill_and_decode = backend.capabilities().mixes_prefill_and_decode,
                                   .prefix_caching = false};  // every pass computes the same prompts
  engine_ = std::make_unique<Engine>(std::move(compiled), program, scheduling,
                                     EngineLimits{vocab_size_, max_model_len, {}}, pool, cpu::select_kernels());
}

void ModelBench::add_requests(const Workload& workload) {
  std::mt19937_64 random(options_.seed);
  for (std::int64_t i = 0; i < workload.batch; ++i) {
    Request request{.id = i, .prompt = {}, .params = {}};
    request.params.max_tokens = static_cast<std::int32_t>(workload.generate);
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    for (std::int64_t t = 0; t < workload.prompt; ++t)
      request.prompt.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab_size_)));
    engine_->check(request);
    engine_->add(std::move(request));
  }
}

// Of the last step, which took so long. What the program did not take is the engine's: scheduling, assembling the step,
// sampling.
std::vector<OpTime> ModelBench::take_op_times(double step_seconds) {
  std::vector<OpTime> ops;
  if (options_.time_ops) {
    for (const Program::StepTime& time : program_->take_step_times()) ops.push_back({time.name, time.seconds});
  }
  ops.push_back({"engine", step_seconds - program_->seconds()});
  return ops;
}

Pass ModelBench::run_once(const Workload& workload, Limits* limits) {
  add_requests(workload);
  Pass pass;
  StepOutput output;
  std::unordered_set<RequestId> begun;  // have their first token
  Beside beside(limits);
  for (Clock::time_point start = Clock::now(); engine_->step(output); start = Clock::now()) {
    const double seconds = seconds_since(start);
    const bool prefilling = static_cast<std::int64_t>(begun.size()) < workload.batch;
    Phase& phase = prefilling ? pass.prefill : pass.decode;
    const std::vector<OpTime> ops = take_op_times(seconds);
    if (prefilling || program_->num_tokens() == workload.batch) {
      phase.seconds.push_back(seconds);
      phase.work.push_back(program_->work());
      add_op_times(ops, phase.ops);
      beside.add(program_->work(), seconds, phase.fractions);
    }
    for (const TokenEvent& event : output.events) pass.tokens.push_back(event.token);
    if (!prefilling) continue;
    for (const TokenEvent& event : output.events) begun.insert(event.request);
    if (static_cast<std::int64_t>(begun.size()) == workload.batch) beside.finish(pass.prefill.fractions);
  }
  beside.finish(pass.decode.fractions);
  return pass;
}

void ModelBench::run(const Workload& workload) {
  program_->start_hash();
  const std::vector<std::int32_t> expected = run_once(workload, nullptr).tokens;
  const std::uint64_t hash = program_->finish_hash();
  std::vector<Phase> prefills;
  std::vector<Phase> decodes;
  for (int repetition = 0; repetition < options_.repeat; ++repetition) {
    Pass pass = run_once(workload, limits_);
    if (pass.tokens != expected) throw BackendError(cat(name_, ": a repetition gave other tokens than the first"));
    prefills.push_back(std::move(pass.prefill));
    decodes.push_back(std::move(pass.decode));
  }
  report(workload, "prefill", std::move(prefills), hash);
  if (!decodes.front().seconds.empty()) report(workload, "decode", std::move(decodes), hash);
}

// A sample is a whole prefill phase, or one decode step.
void ModelBench::report(const Workload& workload, const std::string& kind, std::vector<Phase> phases,
                        std::uint64_t hash) {
  const bool prefill = kind == "prefill";
  Result result{.kind = kind,
                .name = name_,
                .shape = {{"prompt", workload.prompt}, {"generate", workload.generate}, {"batch", workload.batch}},
                .unit = "tokens",
                .units = static_cast<double>(workload.batch * (prefill ? workload.prompt : 1)),
                .work = {},
                .seconds = {},
                .ops = {},
                .logits_hash = hash,
                .fraction_beside = {}};
  std::vector<double> fractions;
  for (const Phase& phase : phases) {
    result.work += phase.total_work();
    fractions.insert(fractions.end(), phase.fractions.begin(), phase.fractions.end());
    if (prefill) {
      result.seconds.push_back(phase.total_seconds());
    } else {
      result.seconds.insert(result.seconds.end(), phase.seconds.begin(), phase.seconds.end());
    }
    add_op_times(phase.ops, result.ops);
  }
  const auto samples = static_cast<double>(result.seconds.size());
  result.work = {result.work.bytes / samples, result.work.flops / samples};
  for (OpTime& op : result.ops) op.seconds /= samples;
  if (!fractions.empty()) result.fraction_beside = quantile(fractions, 0.5);
  report_.add(std::move(result));
}

}  // namespace

void bench_model(const std::string& preset_name, const Options& options, Backend& backend, ThreadPool& pool,
                 Limits* limits, Report& report) {
  ModelBench bench(preset_name, options, backend, pool, limits, report);
  for (const Workload& workload : options.workloads) {
    bench.run(workload);
    if (limits != nullptr) limits->measure_again();
  }
}

}  // namespace lb::bench
