// A build without CANN.
#include "backend/atb/atb_backend.h"
#include "base/error.h"

namespace lb::npu {

bool is_built() { return false; }

std::unique_ptr<Backend> make_atb_backend(ThreadPool& /*pool*/, const DeviceOptions& /*options*/) {
  throw BackendError(
      "backend 'atb' is not in this build: CANN and ATB were not found when it was made; source both set_env.sh and "
      "install again (`llm-boost doctor` says what is missing)");
}

bool has_device() { return false; }

DeviceReport probe_devices() { return {}; }

}  // namespace lb::npu
