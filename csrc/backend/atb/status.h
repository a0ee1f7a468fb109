// Every status of ACL and ATB becomes a BackendError with the call, what it was for, the code's meaning and the remedy.
#pragma once

#include <string>
#include <string_view>

namespace lb::npu {

[[noreturn]] void fail_acl(int code, std::string_view call, std::string_view subject);
[[noreturn]] void fail_atb(int code, std::string_view call, std::string_view subject);

// `subject` says what the call was for: "the KV cache", "layer 3 (decode)".
inline void check_acl(int code, std::string_view call, std::string_view subject) {
  if (code != 0) [[unlikely]]
    fail_acl(code, call, subject);
}

inline void check_atb(int code, std::string_view call, std::string_view subject) {
  if (code != 0) [[unlikely]]
    fail_atb(code, call, subject);
}

}  // namespace lb::npu
