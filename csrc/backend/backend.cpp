#include "backend/backend.h"

#include <cstdlib>

#include "backend/atb/atb_backend.h"
#include "backend/cpu/cpu_backend.h"
#include "base/error.h"

namespace lb {

std::vector<std::string> backend_names() {
  if (npu::is_built()) return {npu::kBackendName, "cpu"};
  return {"cpu"};
}

DeviceReport probe_devices() { return npu::probe_devices(); }

std::string default_backend() {
  const char* preferred = std::getenv("LLM_BOOST_BACKEND");
  if (preferred != nullptr && *preferred != '\0') return preferred;
  return npu::has_device() ? npu::kBackendName : "cpu";
}

std::unique_ptr<Backend> make_backend(std::string_view choice, ThreadPool& pool, const DeviceOptions& device) {
  const std::string name = choice == "auto" ? default_backend() : std::string(choice);
  if (name == npu::kBackendName) return npu::make_atb_backend(pool, device);
  if (name == "cpu") return std::make_unique<cpu::CpuBackend>(pool);
  std::string known;
  for (const std::string& each : backend_names()) known += cat(known.empty() ? "" : ", ", each);
  throw BackendError(cat("backend '", name, "' is not available in this build; available: ", known));
}

}  // namespace lb
