// A model on a device: weights, cache, one graph operation for each layer and phase, and the step that runs them.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/atb/agreement.h"
#include "backend/atb/device.h"
#include "backend/atb/executor.h"
#include "backend/atb/graph_launch.h"
#include "backend/atb/model_plan.h"
#include "backend/atb/step_inputs.h"
#include "backend/atb/weights.h"
#include "backend/backend.h"
#include "base/thread_pool.h"

namespace lb::npu {

class AtbProgram final : public Program {
 public:
  AtbProgram(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options, const Target& target,
             Device& device, ThreadPool& pool);
  ~AtbProgram() override;

  // After a failed step the program can be used again where the device answers; otherwise every later call says why
  // not.
  std::span<const float> run(const StepBatch& batch) override;
  void copy_blocks(std::span<const BlockCopy> copies) override;
  std::int64_t agree(std::int64_t value) override;
  std::vector<StepTime> take_step_times() override;
  Memory memory() const override;

 private:
  // A tensor whose shape, or also whose address, is known when a step runs.
  struct Moving {
    atb::Tensor* tensor = nullptr;
    const Tensor* plan = nullptr;
    bool is_step_input = false;
  };
  struct BoundLaunch {
    Launch launch;
    std::vector<Moving> moving;
  };
  // The operations of a decode step of `size` sequences, in graph launch mode.
  struct GraphStep {
    std::int64_t size = 0;
    BoundLaunch embed;
    std::vector<BoundLaunch> layers;
    BoundLaunch head;
  };
  // Offsets in the slab.
  struct Places {
    std::vector<std::int64_t> keys;  // a layer
    std::vector<std::int64_t> values;
    std::array<std::int64_t, 2> hidden{};  // layers read one pair and write the other
    std::array<std::int64_t, 2> residual{};
    std::int64_t cos = 0;
    std::int64_t sin = 0;
    std::int64_t logits = 0;
    std::int64_t cos_table = 0;
    std::int64_t sin_table = 0;
    std::array<std::int64_t, kNumPhases> mask{};
  };

  void plan_memory(const ModelGraph& graph);
  void upload_constants(const ModelGraph& graph);
  void upload_bytes(std::int64_t offset, const std::vector<std::byte>& bytes, const char* subject);
  void clear_cache();
  void make_operations();
  void bind(BoundLaunch& bound, const GraphPlan& plan, const std::vector<std::size_t>& weights, std::int64_t layer,
            Phase phase, const std::string& name);
  void bind_layers(std::vector<BoundLaunch>& launches, Phase phase);
  void make_graph_steps();
  std::byte* address(const Tensor& tensor, const std::vector<std::size_t>& weights, std::int64_t layer, Phase phase,
                     bool is_output) const;
  void reserve_workspace();
  void refresh(BoundLaunch& bound);
  void launch(BoundLaunch& bound);
  GraphStep* graph_step_for(const StepBatch& batch, Phase phase);
  std::span<const float> run_step(const StepBatch& batch);
  std::span<const float> take_logits(std::size_t count);
  template <class F>
  auto guarded(F&& f) -> decltype(f());

  Device& device_;
  ThreadPool& pool_;
  const ProgramOptions options_;
  const Target target_;
  const ModelPlan plan_;
  const std::vector<std::int64_t> graph_sizes_;
  const std::int64_t num_blocks_;  // with one to spare where steps are padded
  PaddedStep padded_;
  std::int64_t vocab_size_ = 0;
  std::int64_t block_bytes_ = 0;  // of keys, or values, of one layer

  Slab slab_;
  DeviceWeights weights_;
  std::vector<std::vector<std::size_t>> layer_weights_;
  std::vector<std::size_t> embed_weights_;
  std::vector<std::size_t> head_weights_;
  Places places_;
  StepInputs inputs_;
  Agreement agreement_;
  PinnedMemory logits_staging_;
  std::vector<float> logits_;  // [R, V]

  Extents extents_;
  Executor executor_;  // after the memory that operations use
  BoundLaunch embed_;
  std::array<std::vector<BoundLaunch>, kNumPhases> layers_;
  BoundLaunch head_;
  BoundLaunch head_rows_;
  std::vector<GraphStep> graph_steps_;  // by size

  std::thread::id bound_thread_;
  std::string broken_;  // why the program cannot be used any more
  std::array<double, 3> seconds_{};
};

}  // namespace lb::npu
