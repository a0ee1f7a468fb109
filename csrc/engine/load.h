// From a config and a weight table to an engine that is ready to serve.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_loop.h"
#include "model/config.h"
#include "model/weights.h"

namespace lb {

// What a user may choose about a loaded model; the one home of these defaults.
struct EngineOptions {
  std::string backend = "auto";           // the best there is
  std::string dtype = "auto";             // of weights: as stored
  std::string activation_dtype = "auto";  // what suits the backend and the weights
  std::int64_t num_threads = 0;           // 0: as many as this process may use
  std::int64_t block_size = 0;            // 0: what suits the backend
  std::int64_t num_blocks = 0;            // 0: from the memory that is free
  std::int64_t max_num_seqs = 64;
  std::int64_t max_model_len = 0;  // 0: what the model was trained for, or what fits the cache
  std::int64_t max_num_batched_tokens = 512;
  bool enable_prefix_caching = true;
  bool time_steps = false;
  DeviceOptions device;
  std::vector<std::int32_t> eos_token_ids;
  // Bytes packed; on the engine's thread, ten times a second at most and at the end.
  std::function<void(std::int64_t done, std::int64_t total)> on_progress;
};

// What became of the options.
struct EngineInfo {
  std::string backend;  // its description
  std::string isa;
  std::string activation_dtype;
  std::int64_t num_threads = 0;
  std::int64_t block_size = 0;
  std::int64_t num_blocks = 0;
  std::int64_t max_num_seqs = 0;
  std::int64_t max_model_len = 0;
  std::int64_t max_num_batched_tokens = 0;
  Program::Memory memory;
};

// Owns everything that a loaded model needs.
class LoadedModel {
 public:
  // Throws ConfigError, CheckpointError or BackendError.
  LoadedModel(const ModelConfig& config, const WeightTable& weights, const EngineOptions& options);

  EngineLoop& loop() { return *loop_; }
  const EngineInfo& info() const { return info_; }

 private:
  std::unique_ptr<Engine> make_engine(const ModelConfig& config, const WeightTable& weights,
                                      const EngineOptions& options);

  EngineInfo info_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<EngineLoop> loop_;  // last, so that it stops before what it uses is gone
};

}  // namespace lb
