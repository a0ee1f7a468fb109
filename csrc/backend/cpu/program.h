// A model compiled for the CPU: packed weights, an arena, a KV cache, and steps over them.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "backend/backend.h"
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

  // A graph's steps with its weights resolved, once per layer for the layer graph.
  struct Stage {
    LoweredGraph graph;
    std::vector<std::size_t> first_weight;  // per repetition: where its weights start in packed_->weights()
  };

  void pack(const ModelGraph& graph, const WeightLookup& weights, const ProgramOptions& options);
  void allocate_cache(const ModelGraph& graph);
  void prepare(const StepBatch& batch);
  void run_stage(const Stage& stage, int& step_index, int member);
  std::uint32_t* layer_cache(std::int64_t layer) const;
  CacheView cache_view(std::int64_t layer, std::int64_t kv_head) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  const ProgramOptions options_;
  Operand operand_ = Operand::kF32;
  RopeTable rope_;
  Stage embed_;
  Stage layers_;
  Stage head_;
  std::unique_ptr<PackedWeights> packed_;

  // Cache: [layers][groups of 16 positions]{keys [kv_heads][words], values [kv_heads][words]}. A short context touches
  // few pages of each layer, a block is one piece of memory, and a long context is still read as streams.
  DType cache_dtype_ = DType::kF32;
  std::int64_t num_kv_heads_ = 0;
  std::int64_t head_dim_ = 0;
  std::int64_t padded_dim_ = 0;
  std::int64_t group_words_ = 0;  // of one layer
  mutable Buffer cache_;
  Buffer arena_;
  std::size_t scratch_stride_ = 0;
  Buffer scratch_;  // [threads] for attention

  // Of the step that runs.
  const StepBatch* batch_ = nullptr;
  std::vector<std::uint8_t> last_of_sequence_;  // [T]
  std::vector<std::int64_t> attention_items_;   // [S + 1] prefix sums
  std::deque<WorkShares> shares_;               // one per step of the whole model
  std::vector<double> step_seconds_;            // per kind of step: embed, layer and head steps in order
};

// Bytes that one position of one layer takes for one kv head: key and value.
std::int64_t cache_bytes_per_position(std::int64_t head_dim, DType dtype);

}  // namespace lb::cpu
