// Counts heap allocations while an engine decodes: prints how many the steps made. Every allocation of the process goes
// through the functions below, on all threads.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/isa.h"
#include "base/file.h"
#include "engine/engine.h"
#include "model/model.h"
#include "model/weights.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  if (counting) ++allocations;
  void* memory = alignment > alignof(std::max_align_t)
                     ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)
                     : std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return counted(size, 0); }
void* operator new[](std::size_t size) { return counted(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return counted(size, 0); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return counted(size, 0); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace lb;

// All weights are read from the start of one file of random bf16 numbers.
WeightTable random_weights(const ModelGraph& graph, const std::string& path) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, 0.05F);
  std::FILE* file = std::fopen(path.c_str(), "wb");
  for (int i = 0; i < 1 << 20; ++i) {
    const Bf16 x = to_bf16(normal(random));
    std::fwrite(&x, sizeof(x), 1, file);
  }
  std::fclose(file);
  WeightTable table;
  for (const WeightSpec& spec : expected_weights(graph)) {
    std::uint64_t bytes = 2;
    for (const std::int64_t extent : spec.shape) bytes *= static_cast<std::uint64_t>(extent);
    table.add(StoredTensor(spec.name, DType::kBF16, spec.shape, {{table.open(path), 0, bytes}}));
  }
  return table;
}

SamplingParams params_of(int request) {
  SamplingParams params;
  params.max_tokens = 200;
  params.seed = 1;
  params.temperature = request % 2 == 0 ? 0.0F : 0.8F;
  if (request == 3) params.top_k = 20;
  if (request == 5) params.top_p = 0.9F;
  if (request == 7) params.repetition_penalty = 1.2F;
  return params;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: llm_boost_step_allocations SCRATCH_FILE\n", stderr), 2;
  ModelConfig config{.architecture = "qwen2",
                     .hidden_size = 64,
                     .intermediate_size = 96,
                     .num_layers = 3,
                     .num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 16,
                     .vocab_size = 1000,
                     .max_positions = 512,
                     .rms_norm_eps = 1e-6F,
                     .qkv_bias = true,
                     .rope_inv_freq = {1.0F, 0.5F, 0.25F, 0.1F, 0.05F, 0.01F, 0.005F, 0.001F}};
  const ModelGraph graph = build_model(config);
  const WeightTable weights = random_weights(graph, argv[1]);
  ThreadPool pool(2);
  ProgramOptions options;
  options.max_blocks = 32;
  options.num_blocks = 256;
  options.max_sequences = 8;
  auto backend = make_backend("cpu", pool, {});
  Engine engine(backend->compile(
                    graph, [&](const std::string& name) -> const StoredTensor& { return weights.at(name); }, options),
                options, SchedulerLimits{.max_tokens = options.max_tokens, .max_sequences = 8},
                EngineLimits{config.vocab_size, config.max_positions, {}}, pool, *cpu::available_kernels().front());
  for (int request = 0; request < 8; ++request)
    engine.add({request, std::vector<std::int32_t>(static_cast<std::size_t>(5 + 7 * request), 3 + request),
                params_of(request)});
  StepOutput output;
  for (int step = 0; step < 10; ++step) engine.step(output);  // prompts, and vectors that grow once
  counting = true;
  long tokens = 0;
  for (int step = 0; step < 100; ++step) {
    engine.step(output);
    tokens += static_cast<long>(output.events.size());
  }
  counting = false;
  std::printf("%ld allocations in 100 steps, %ld tokens\n", allocations.load(), tokens);
  return 0;
}
