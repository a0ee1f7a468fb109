#include "backend/cpu/isa.h"

#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/host.h"

namespace lb::cpu {

const bool streams_into_l1 = l1_data_bytes() >= std::int64_t{48} * 1024;

const Kernels& select_kernels() {
  const std::vector<const Kernels*> available = available_kernels();
  const char* forced = std::getenv("LLM_BOOST_ISA");
  if (forced == nullptr || *forced == '\0') return *available.front();
  std::string names;
  for (const Kernels* kernels : available) {
    if (std::string_view(forced) == kernels->name) return *kernels;
    names += cat(names.empty() ? "" : ", ", kernels->name);
  }
  throw ConfigError(cat("environment variable LLM_BOOST_ISA is '", forced,
                        "', expected one of the levels that this machine has: ", names));
}

}  // namespace lb::cpu
