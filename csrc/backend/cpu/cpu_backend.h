// The CPU backend: native SIMD kernels, always built in.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"

namespace lb::cpu {

class CpuBackend final : public Backend {
 public:
  // Throws ConfigError when LLM_BOOST_ISA names a level that is not available.
  explicit CpuBackend(ThreadPool& pool);

  const Capabilities& capabilities() const override { return capabilities_; }
  DType activation_dtype(DType weights) const override { return weights == DType::kBF16 ? DType::kBF16 : DType::kF32; }
  std::int64_t cache_budget(const ModelGraph& graph, const ProgramOptions& options,
                            std::int64_t stored_bytes) const override;
  std::int64_t block_bytes(const ModelGraph& graph, std::int64_t block_size, DType activation_dtype) const override;
  std::unique_ptr<Program> compile(const ModelGraph& graph, const WeightLookup& weights,
                                   const ProgramOptions& options) override;

 private:
  ThreadPool& pool_;
  const Kernels& kernels_;
  Capabilities capabilities_;
};

}  // namespace lb::cpu
