// A model compiled for the CPU: packed weights, an arena, a KV cache, and steps over them.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention_pieces.h"
#include "backend/cpu/cache_layout.h"
#include "backend/cpu/lowering.h"
#include "backend/cpu/packing.h"
#include "backend/cpu/work_shares.h"
#include "base/memory.h"
#include "base/thread_pool.h"

namespace lb::cpu {

// What element types a program computes with; see Operand.
Operand choose_operand(const Kernels& kernels, DType activation_dtype, bool all_weights_bf16);

class CpuProgram final : public Program {
 public:
  CpuProgram(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options,
             const Kernels& kernels, ThreadPool& pool);

  std::span<const float> run(const StepBatch& batch) override;
  void copy_blocks(std::span<const BlockCopy> copies) override;
  std::vector<StepTime> take_step_times() override;
  Memory memory() const override;

 private:
  friend class StepRunner;

  // A graph's steps with its weights resolved, once per layer for graphs of layers.
  struct Stage {
    LoweredGraph graph;
    std::int64_t first_layer = 0;
    std::vector<std::size_t> first_weight;  // per repetition: where its weights start in packed_->weights()
    std::vector<double> seconds;            // per kind of step, summed over repetitions
  };

  // Tokens of a step that follow one another in one group of the cache's positions.
  struct CacheRun {
    std::size_t first_token;
    std::int64_t tokens;
    bool last_of_sequence;
  };

  void pack(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options);
  void prepare(const StepBatch& batch);
  void find_cache_runs(const StepBatch& batch);
  std::array<Stage*, 4> stages() { return {&embed_, &layers_, &last_layer_, &head_}; }
  void run_stage(Stage& stage, int& step_index, int member);
  std::uint32_t* cache_words() const;
  CacheView cache_view(std::int64_t layer, std::int64_t kv_head) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  const ProgramOptions options_;
  Operand operand_ = Operand::kF32;
  RopeTable rope_;
  Stage embed_;
  Stage layers_;  // all but the last
  Stage last_layer_;
  Stage head_;
  std::unique_ptr<PackedWeights> packed_;

  const CacheLayout cache_layout_;
  mutable Buffer cache_;
  Buffer arena_;
  std::size_t scratch_stride_ = 0;
  Buffer scratch_;  // [threads] for attention
  mutable AttentionPieces attention_;
  mutable AttentionPieces attention_of_logit_rows_;

  // Of the step that runs.
  const StepBatch* batch_ = nullptr;
  std::vector<CacheRun> cache_runs_;
  std::deque<WorkShares> shares_;  // one per step of the whole model
};

// The cache of a model.
CacheLayout cache_layout(const ModelGraph& graph, DType dtype);
std::int64_t num_query_heads(const ModelGraph& graph);

}  // namespace lb::cpu
