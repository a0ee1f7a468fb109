// The command line of llm_boost_bench.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace lb::bench {

struct Workload {
  std::int64_t prompt = 0;    // tokens
  std::int64_t generate = 0;  // tokens
  std::int64_t batch = 0;     // sequences
};

enum class Mode : std::uint8_t { kHelp, kLimits, kKernels, kModels };

struct Options {
  Mode mode = Mode::kHelp;
  std::vector<std::string> names;                 // presets, or kernels
  std::vector<std::vector<std::int64_t>> shapes;  // of the one kernel that is named; empty: its usual ones
  std::vector<Workload> workloads = {{128, 128, 1}, {512, 1, 1}, {2048, 1, 1}, {128, 32, 8}, {128, 32, 32}};
  std::int64_t num_layers = 0;  // 0: all
  DType dtype = DType::kBF16;
  DType activation_dtype = DType::kBF16;
  std::string backend = "cpu";
  int num_threads = 0;  // 0: as many as this process may use
  std::int64_t max_num_batched_tokens = 512;
  int repeat = 3;
  bool time_ops = true;
  std::uint64_t seed = 1;
  std::size_t probe_bytes = std::size_t{1} << 30;
  std::string json_path;  // "": none
};

// Throws ConfigError for what it does not understand.
Options parse_options(std::span<const char* const> arguments);

std::string help_text();

}  // namespace lb::bench
