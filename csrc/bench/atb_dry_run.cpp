// Makes every graph of a model's shape on an Ascend device, sets each up and runs it once, without weights: shows that
// ATB takes all of them. With --time it measures what a decode step costs the host.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "base/host.h"
#include "model/model.h"

extern "C" char __executable_start;  // NOLINT: the linker's names
extern "C" char etext;               // NOLINT

namespace {

std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

// Counts allocations that code of this program asks for; those of the libraries below are theirs.
void* counted(std::size_t size, std::size_t alignment, const void* caller) {
  if (counting && caller >= &__executable_start && caller < &etext) ++allocations;
  void* memory = alignment > alignof(std::max_align_t)
                     ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)
                     : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return counted(size, 0, __builtin_return_address(0)); }
void* operator new[](std::size_t size) { return counted(size, 0, __builtin_return_address(0)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment), __builtin_return_address(0));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace lb;

struct Arguments {
  std::vector<std::string> presets{"llama2-7b", "qwen2-7b", "small"};
  std::vector<DType> dtypes{DType::kF16, DType::kBF16};
  std::vector<int> worlds{1, 2};
  std::int64_t num_layers = 2;  // the first differs from the others, which are all alike
  bool nz = false;
  std::string communication;
  int timed_steps = 0;
};

struct Preset {
  const char* name;
  const char* architecture;
  std::int64_t hidden, ffn, heads, kv_heads, head_dim, vocab;
  float epsilon;
};
constexpr Preset kPresets[] = {{"llama2-7b", "llama", 4096, 11008, 32, 32, 128, 32000, 1e-5F},
                               {"qwen2-7b", "qwen2", 3584, 18944, 28, 4, 128, 152064, 1e-6F},
                               {"small", "llama", 256, 688, 4, 2, 64, 1001, 1e-5F}};

ModelConfig config_of(const std::string& name, std::int64_t num_layers) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    ModelConfig config;
    config.architecture = preset.architecture;
    config.hidden_size = preset.hidden;
    config.intermediate_size = preset.ffn;
    config.num_layers = num_layers;
    config.num_heads = preset.heads;
    config.num_kv_heads = preset.kv_heads;
    config.head_dim = preset.head_dim;
    config.vocab_size = preset.vocab;
    config.max_positions = 512;
    config.rms_norm_eps = preset.epsilon;
    config.qkv_bias = config.architecture == "qwen2";
    config.rope_inv_freq.assign(static_cast<std::size_t>(config.head_dim / 2), 0.5F);
    return config;
  }
  throw ConfigError(cat("there is no preset '", name, "', expected llama2-7b, qwen2-7b or small"));
}

// The arrays of a step in which each sequence brings `count` tokens after `cached` ones.
struct Step {
  std::vector<std::int32_t> tokens, positions, slots, seq_begin{0}, context_len, block_table, rows;

  Step(const ProgramOptions& options, int num_sequences, std::int32_t cached, std::int32_t count) {
    for (std::int32_t s = 0; s < num_sequences; ++s) {
      for (std::int32_t p = cached; p < cached + count; ++p) {
        tokens.push_back(1 + s);
        positions.push_back(p);
        slots.push_back(s * static_cast<std::int32_t>(options.max_blocks * options.block_size) + p);
      }
      seq_begin.push_back(static_cast<std::int32_t>(tokens.size()));
      context_len.push_back(cached + count);
      for (std::int32_t b = 0; b < options.max_blocks; ++b)
        block_table.push_back(s * static_cast<std::int32_t>(options.max_blocks) + b);
      rows.push_back(seq_begin.back() - 1);
    }
  }
  StepBatch batch() const { return {tokens, positions, slots, seq_begin, context_len, block_table, rows}; }
};

void time_decoding(Program& program, const ProgramOptions& options, int num_steps) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> milliseconds;
  for (int i = -16; i < num_steps; ++i) {  // the first ones warm up
    const Step step(options, 4, 200, 1);
    const StepBatch batch = step.batch();
    counting = i >= 0;
    const Clock::time_point start = Clock::now();
    program.run(batch);
    const double elapsed = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    counting = false;
    if (i >= 0) milliseconds.push_back(elapsed);
  }
  std::ranges::sort(milliseconds);
  const auto at = [&](std::size_t percent) { return milliseconds[milliseconds.size() * percent / 100]; };
  std::printf("decode step, host: median %.3f ms, p10 %.3f, p90 %.3f; %ld allocations in %d steps\n", at(50), at(10),
              at(90), allocations.load(), num_steps);
}

void run_model(const Arguments& arguments, const std::string& name, DType dtype) {
  const ModelGraph graph = build_model(config_of(name, arguments.num_layers));
  ThreadPool pool(1);
  DeviceOptions device;
  if (arguments.nz) device.need_nz = true;
  device.communication_backend = arguments.communication;
  const auto backend = make_backend("atb", pool, device);
  ProgramOptions options;
  options.activation_dtype = dtype;
  options.max_sequences = 4;
  options.block_size = backend->capabilities().default_block_size;
  options.max_blocks = 512 / options.block_size;
  options.num_blocks = options.max_blocks * options.max_sequences;
  const auto program = backend->compile(graph, {}, options);
  struct Case {
    const char* name;
    int sequences;
    std::int32_t cached, count;
  };
  constexpr Case kCases[] = {{"prefill", 2, 0, 100},
                             {"prefix hit", 2, 128, 30},
                             {"chunked prefill", 2, 100, 60},
                             {"decode", 4, 200, 1},
                             {"decode", 1, 7, 1}};
  for (const Case& each : kCases) {
    if (!backend->capabilities().continues_prompts && each.cached > 0 && each.count > 1) continue;
    program->run(Step(options, each.sequences, each.cached, each.count).batch());
    std::printf("%s %s %s: ok\n", name.c_str(), std::string(lb::name(dtype)).c_str(), each.name);
  }
  if (arguments.timed_steps > 0) time_decoding(*program, options, arguments.timed_steps);
}

int run_models(const Arguments& arguments) {
  try {
    for (const std::string& name : arguments.presets) {
      for (const DType dtype : arguments.dtypes) run_model(arguments, name, dtype);
    }
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "llm_boost_atb_dry_run: %s\n", error.what());
    return 1;
  }
}

// One process a rank, as a launcher would start them.
int run_world(const Arguments& arguments, int world) {
  if (world == 1) return run_models(arguments);
  std::printf("world size %d\n", world);
  std::fflush(stdout);
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < world; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      setenv("RANK_ID", std::to_string(rank).c_str(), 1);
      setenv("RANK_SIZE", std::to_string(world).c_str(), 1);
      if (rank > 0 && std::freopen("/dev/null", "w", stdout) == nullptr) std::_Exit(1);
      std::exit(run_models(arguments));
    }
    ranks.push_back(child);
  }
  int failures = 0;
  for (const pid_t child : ranks) {
    int status = 0;
    waitpid(child, &status, 0);
    failures += status != 0;
  }
  return failures;
}

// A process for each world size: devices must not be open when others are started.
int run_all(const Arguments& arguments) {
  if (arguments.worlds.size() == 1) return run_world(arguments, arguments.worlds.front());
  int failures = 0;
  for (const int world : arguments.worlds) {
    const pid_t child = fork();
    if (child == 0) std::exit(run_world(arguments, world) == 0 ? 0 : 1);
    int status = 0;
    waitpid(child, &status, 0);
    failures += status != 0;
  }
  return failures;
}

constexpr const char* kUsage =
    "usage: llm_boost_atb_dry_run [--preset llama2-7b|qwen2-7b|small] [--dtype float16|bfloat16] [--world N]\n"
    "                             [--communication lccl|hccl] [--layers N] [--nz] [--time STEPS]\n"
    "Without options: all presets, both types, world sizes 1 and 2. LLM_BOOST_ATB_GRAPH_LAUNCH=1,4 captures "
    "decoding.\n";

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--nz") {
      arguments.nz = true;
      continue;
    }
    if (i + 1 == argc) throw ConfigError(cat("option ", option, " is unknown or lacks its value\n", kUsage));
    const std::string value = argv[++i];
    if (option == "--preset") {
      arguments.presets = {value};
    } else if (option == "--dtype") {
      arguments.dtypes = {parse_dtype(value, "--dtype")};
    } else if (option == "--world") {
      arguments.worlds = {std::max(std::atoi(value.c_str()), 1)};
    } else if (option == "--communication") {
      arguments.communication = value;
    } else if (option == "--layers") {
      arguments.num_layers = std::max(std::atoi(value.c_str()), 1);
    } else if (option == "--time") {
      arguments.timed_steps = std::atoi(value.c_str());
    } else {
      throw ConfigError(cat("option ", option, " is unknown\n", kUsage));
    }
  }
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_all(parse(argc, argv)) == 0 ? 0 : 1;
  } catch (const Error& error) {
    std::fprintf(stderr, "llm_boost_atb_dry_run: %s\n", error.what());
    return 2;
  }
}
