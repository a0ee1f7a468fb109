#include "backend/backend.h"

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"

namespace lb {

std::vector<std::string> backend_names() { return {"cpu"}; }

std::unique_ptr<Backend> make_backend(std::string_view name, ThreadPool& pool, const DeviceOptions& /*device*/) {
  if (name == "cpu") return std::make_unique<cpu::CpuBackend>(pool);
  std::string known;
  for (const std::string& each : backend_names()) known += cat(known.empty() ? "" : ", ", each);
  throw BackendError(cat("backend '", name, "' is not available in this build; available: ", known));
}

}  // namespace lb
