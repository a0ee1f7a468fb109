#include "backend/atb/atb_backend.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "backend/atb/device.h"
#include "backend/atb/limits.h"
#include "backend/atb/model_plan.h"
#include "backend/atb/program.h"
#include "backend/atb/ranks.h"
#include "base/error.h"

namespace lb::npu {
namespace {

bool is_310p(const std::string& soc) { return soc.find("Ascend310P") != std::string::npos; }

// The chips whose kernels ATB's "910B" rules are about: A2 and A3.
bool is_910b(const std::string& soc) {
  return soc.find("Ascend910B") != std::string::npos || soc.find("Ascend910_93") != std::string::npos;
}

bool needs_nz(const std::string& soc, std::optional<bool> wanted) {
  if (!is_310p(soc)) return wanted.value_or(false);
  if (!wanted.value_or(true))
    throw ConfigError(cat("need_nz is false, but ", soc, " computes with matrices in NZ format alone; leave it out"));
  return true;
}

std::string communication(const std::string& soc, const std::string& wanted) {
  if (wanted.empty()) return is_310p(soc) ? "hccl" : "lccl";
  if (wanted != "lccl" && wanted != "hccl")
    throw ConfigError(cat("communication_backend is '", wanted, "', expected lccl or hccl"));
  return wanted;
}

// ATB looks for its kernels and tables there when it runs, and goes on without a word where they are missing.
void check_environment() {
  for (const char* variable : {"ATB_HOME_PATH", "ASCEND_HOME_PATH"}) {
    const char* value = std::getenv(variable);
    if (value == nullptr || *value == '\0') {
      throw BackendError(cat("atb backend: environment variable ", variable,
                             " is not set; source ascend-toolkit/set_env.sh and nnal/atb/set_env.sh, both below "
                             "/usr/local/Ascend, and start again"));
    }
  }
  // Objects that hold a string have another layout in the libraries of the other ABI; nothing else would notice.
  const std::string_view home(std::getenv("ATB_HOME_PATH"));
  if (home.find(_GLIBCXX_USE_CXX11_ABI != 0 ? "cxx_abi_0" : "cxx_abi_1") != std::string_view::npos) {
    throw BackendError(cat("atb backend: ATB_HOME_PATH is ", home, ", but llm_boost was built for C++ ABI ",
                           _GLIBCXX_USE_CXX11_ABI, "; source nnal/atb/set_env.sh --cxx_abi=", _GLIBCXX_USE_CXX11_ABI,
                           " and start again"));
  }
}

class AtbBackend final : public Backend {
 public:
  AtbBackend(ThreadPool& pool, const DeviceOptions& options)
      : pool_(pool),
        ranks_(ranks_from_environment()),
        device_(static_cast<std::int32_t>(options.device_id + ranks_.rank)) {
    const std::string& soc = device_.soc();
    if (!is_310p(soc) && !is_910b(soc)) {
      throw BackendError(cat("atb backend: ", soc.empty() ? "an unnamed chip" : soc,
                             " is not supported, expected Ascend 910B, 910_93 or 310P; use the cpu backend"));
    }
    target_.ranks = ranks_;
    target_.is_310p = is_310p(soc);
    target_.nz_weights = needs_nz(soc, options.need_nz);
    target_.communication = communication(soc, options.communication_backend);
    capabilities_.mixes_prefill_and_decode = false;
    capabilities_.continues_prompts = !target_.is_310p;
    capabilities_.block_size_multiple = 16;
    capabilities_.default_block_size = kPrefixMultiple;
    capabilities_.chunk_multiple = kPrefixMultiple;
    capabilities_.description = cat("atb, ", soc, ", device ", device_.id());
    if (ranks_.size > 1)
      capabilities_.description += cat(", rank ", ranks_.rank, " of ", ranks_.size, " over ", target_.communication);
  }

  const Capabilities& capabilities() const override { return capabilities_; }

  DType activation_dtype(DType weights) const override {
    return weights == DType::kF16 || target_.is_310p ? DType::kF16 : DType::kBF16;
  }

  std::int64_t block_bytes(const ModelGraph& graph, std::int64_t block_size, DType /*dtype*/) const override {
    return npu::block_bytes(graph, target_, block_size);
  }

  std::int64_t cache_budget(const ModelGraph& graph, const ProgramOptions& options,
                            std::int64_t /*stored_bytes*/) const override {
    device_.bind_thread();
    const auto [free, total] = device_memory();
    // Scratch of kernels, which only they know, and what the runtime itself takes later: 512 MB of 64 GB.
    const std::int64_t reserve = total / 128;
    const std::int64_t taken = resident_bytes(plan_model(graph, target_for(options), options), options) + reserve;
    const std::int64_t left = free - taken;
    if (left < npu::block_bytes(graph, target_, options.block_size)) {
      throw BackendError(cat("atb backend: device ", device_.id(), " has ", free >> 20, " MB free of ", total >> 20,
                             ", but weights and activations take up to ", taken >> 20,
                             " MB and leave no room for a KV cache; stop what else uses the device, start more ranks, "
                             "or use a smaller max_num_batched_tokens"));
    }
    return left / 10 * 9;
  }

  std::unique_ptr<Program> compile(const ModelGraph& graph, const WeightLookup& weights,
                                   const ProgramOptions& options) override {
    if (options.weight_dtype.value_or(options.activation_dtype) != options.activation_dtype) {
      throw ConfigError(cat("dtype is ", name(*options.weight_dtype), " and activation_dtype ",
                            name(options.activation_dtype), ", but the atb backend computes with one type; give one"));
    }
    return std::make_unique<AtbProgram>(graph, weights, options, target_for(options), device_, pool_);
  }

 private:
  Target target_for(const ProgramOptions& options) const {
    Target target = target_;
    target.dtype = options.activation_dtype;
    target.max_tokens = options.max_tokens;
    return target;
  }

  ThreadPool& pool_;
  const Ranks ranks_;
  Device device_;
  Target target_;  // but for what a program's options say
  Capabilities capabilities_;
};

}  // namespace

bool is_built() { return true; }

std::unique_ptr<Backend> make_atb_backend(ThreadPool& pool, const DeviceOptions& options) {
  check_environment();
  return std::make_unique<AtbBackend>(pool, options);
}

bool has_device() {
  try {
    check_environment();
    start_acl();
    return device_count() > 0;
  } catch (const BackendError&) {
    return false;  // `auto` looks for what works
  }
}

DeviceReport probe_devices() {
  DeviceReport report;
  report.is_built = true;
  report.built_for = LLM_BOOST_ATB_VERSIONS;
  report.abi = _GLIBCXX_USE_CXX11_ABI;
  try {
    start_acl();
    report.num_devices = device_count();
    if (report.num_devices == 0) return report;
    const DeviceUse use(0);
    report.soc = soc_name();
    std::tie(report.free_bytes, report.total_bytes) = device_memory();
  } catch (const Error& error) {
    report.problem = error.what();
  }
  return report;
}

}  // namespace lb::npu
