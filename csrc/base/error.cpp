#include "base/error.h"

#include <cstring>

namespace lb {

void fail_check(const char* file, int line, const char* condition, const std::string& detail) {
  const char* in_source = std::strstr(file, "csrc/");
  throw InternalError(cat(in_source != nullptr ? in_source : file, ":", line, ": ", condition, " does not hold",
                          detail.empty() ? "" : ": ", detail, "; this is a bug in llm_boost, please report it"));
}

}  // namespace lb
