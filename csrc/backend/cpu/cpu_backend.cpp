#include "backend/cpu/cpu_backend.h"

#include <algorithm>

#include "backend/cpu/isa.h"
#include "backend/cpu/program.h"
#include "base/error.h"
#include "base/host.h"

namespace lb::cpu {

CpuBackend::CpuBackend(ThreadPool& pool) : pool_(pool), kernels_(select_kernels()) {
  capabilities_.mixes_prefill_and_decode = true;
  capabilities_.block_size_multiple = kLanes;
  capabilities_.description = cat("cpu, ", kernels_.name, ", ", pool.size(), pool.size() == 1 ? " thread" : " threads");
}

std::int64_t CpuBackend::block_bytes(const ModelGraph& graph, std::int64_t block_size, DType activation_dtype) const {
  return block_size * cache_layout(graph, activation_dtype).bytes_per_position();
}

// At most a quarter of the memory that is free, and no more than thousands of tokens of a 7B model take: a laptop keeps
// room for other things.
std::int64_t CpuBackend::cache_budget(const ModelGraph& /*graph*/, const ProgramOptions& /*options*/,
                                      std::int64_t stored_bytes) const {
  constexpr std::int64_t kMaximum = std::int64_t{4} << 30;
  return std::min(kMaximum, (available_memory() - stored_bytes) / 4);
}

std::unique_ptr<Program> CpuBackend::compile(const ModelGraph& graph, const WeightLookup& weights,
                                             const ProgramOptions& options) {
  LB_CHECK(options.block_size > 0 && options.block_size % kLanes == 0, options.block_size);
  return std::make_unique<CpuProgram>(graph, weights, options, kernels_, pool_);
}

}  // namespace lb::cpu
