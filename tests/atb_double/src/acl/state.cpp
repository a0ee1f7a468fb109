#include "state.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "atb_double.h"

namespace atb_double {
namespace {

constexpr std::array<const char*, kLiveKinds> kLiveNames = {"device_memory", "device_bytes", "host_memory", "stream",
                                                            "event",         "context",      "operation",   "capture"};

std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

[[noreturn]] void refuse(const char* name, const std::string& value, const char* expected) {
  std::fprintf(stderr, "%s is '%s', expected %s\n", name, value.c_str(), expected);
  std::abort();
}

bool choice(const char* name, const char* usual, const char* other) {
  const std::string value = variable(name, usual);
  if (value != usual && value != other) {
    refuse(name, value, (std::string(usual) + " or " + other).c_str());
  }
  return value == other;
}

uint64_t number(const char* name, uint64_t otherwise) {
  const std::string value = variable(name, std::to_string(otherwise).c_str());
  char* end = nullptr;
  const uint64_t result = std::strtoull(value.c_str(), &end, 10);
  if (*end != '\0') {
    refuse(name, value, "a number");
  }
  return result;
}

Settings read_settings() {
  Settings read;
  read.soc = variable("ATB_DOUBLE_SOC", read.soc.c_str());
  read.executes = !choice("ATB_DOUBLE_MODE", "compute", "null");
  read.lazy = choice("ATB_DOUBLE_SCHEDULE", "eager", "lazy");
  read.workspace_rises = choice("ATB_DOUBLE_WORKSPACE", "steady", "rising");
  read.memory_bytes = number("ATB_DOUBLE_HBM_BYTES", read.executes ? read.memory_bytes : uint64_t{64} << 30U);
  read.devices = static_cast<uint32_t>(number("ATB_DOUBLE_DEVICES", read.devices));
  read.comm_timeout_seconds = static_cast<int>(number("ATB_DOUBLE_COMM_TIMEOUT_S", 120));
  return read;
}

struct Log {
  std::mutex mutex;
  std::string text;
  uint64_t errors = 0;
  std::string file = variable("ATB_DOUBLE_LOG_FILE", "");

  void add(const std::string& line) {
    const std::lock_guard lock(mutex);
    text += line + "\n";
    errors += line.starts_with("ERROR") ? 1 : 0;
    if (!file.empty()) {
      if (FILE* out = std::fopen(file.c_str(), "a")) {
        std::fputs((line + "\n").c_str(), out);
        std::fclose(out);
      }
    }
  }
};

// The failures that are due, and how often each call was made.
struct Injection {
  std::mutex mutex;
  std::map<std::string, uint64_t, std::less<>> calls;
  std::map<std::string, uint64_t, std::less<>> due;

  Injection() {  // ATB_DOUBLE_FAIL=Setup:3,aclrtMalloc:1
    const std::string list = variable("ATB_DOUBLE_FAIL", "");
    for (std::size_t begin = 0; begin < list.size();) {
      const std::size_t end = std::min(list.find(',', begin), list.size());
      const std::string item = list.substr(begin, end - begin);
      const std::size_t colon = item.find(':');
      if (colon == std::string::npos) {
        refuse("ATB_DOUBLE_FAIL", list, "CALL:N,...");
      }
      due[item.substr(0, colon)] = std::strtoull(item.c_str() + colon + 1, nullptr, 10);
      begin = end + 1;
    }
  }
  bool count(std::string_view name) {
    auto found = calls.find(name);
    if (found == calls.end()) {
      found = calls.emplace(name, 0).first;
    }
    ++found->second;
    const auto planned = due.find(name);
    if (planned == due.end() || --planned->second > 0) {
      return false;
    }
    due.erase(planned);
    return true;
  }
};

// These live as long as the process: streams may still log while it ends.
Log& the_log() {
  static Log* log = new Log;
  return *log;
}
Injection& the_injection() {
  static Injection* injection = new Injection;
  return *injection;
}

// At the end of the process whatever is alive was leaked.
struct ExitCheck {
  ~ExitCheck() {
    const std::string leaked = live_summary();
    if (!leaked.empty()) {
      log_error("at exit still alive:" + leaked);
    }
  }
};
const ExitCheck exit_check;

}  // namespace

const Settings& settings() {
  static const Settings* read = new Settings(read_settings());
  return *read;
}

bool is_910b() {
  const std::string& soc = settings().soc;
  const std::size_t at = soc.find("Ascend910B");
  return (at != std::string::npos && soc.size() > at + 10) || soc.find("Ascend910_93") != std::string::npos;
}

bool is_310p() { return settings().soc.find("Ascend310P") != std::string::npos; }

void log_line(const std::string& line) { the_log().add(line); }
void log_error(const std::string& message) { the_log().add("ERROR " + message); }

bool injected(std::string_view call, bool in_any) {
  Injection& injection = the_injection();
  bool fails = false;
  {
    const std::lock_guard lock(injection.mutex);
    fails = injection.count(call);
    fails = (in_any && injection.count("any")) || fails;
  }
  if (fails) {
    log_line("INJECTED " + std::string(call));
  }
  return fails;
}

std::atomic<int64_t>& live(Live kind) {
  static std::array<std::atomic<int64_t>, kLiveKinds> counts{};
  return counts[static_cast<std::size_t>(kind)];
}

std::string live_summary() {
  std::string text;
  for (int i = 0; i < kLiveKinds; ++i) {
    const int64_t count = live(static_cast<Live>(i));
    if (count != 0) {
      text.append(" ").append(std::to_string(count)).append(" ").append(kLiveNames[static_cast<std::size_t>(i)]);
    }
  }
  return text;
}

}  // namespace atb_double

using namespace atb_double;

uint64_t atb_double_error_count() {
  const std::lock_guard lock(the_log().mutex);
  return the_log().errors;
}

size_t atb_double_log(char* text, size_t size) {
  const std::lock_guard lock(the_log().mutex);
  const std::string& all = the_log().text;
  if (size > 0) {
    const std::size_t copied = std::min(size - 1, all.size());
    std::memcpy(text, all.data(), copied);
    text[copied] = '\0';
  }
  return all.size();
}

void atb_double_clear_log() {
  const std::lock_guard lock(the_log().mutex);
  the_log().text.clear();
  the_log().errors = 0;
}

void atb_double_fail(const char* call, uint64_t nth) {
  const std::lock_guard lock(the_injection().mutex);
  if (nth == 0) {
    the_injection().due.erase(call);
  } else {
    the_injection().due[call] = nth;
  }
}

uint64_t atb_double_calls(const char* call) {
  const std::lock_guard lock(the_injection().mutex);
  return the_injection().calls[call];
}

uint64_t atb_double_live(const char* kind) {
  uint64_t sum = 0;
  for (std::size_t i = 0; i < kLiveKinds; ++i) {
    const bool any = std::strcmp(kind, "any") == 0 && static_cast<Live>(i) != Live::kDeviceBytes;
    if (any || std::strcmp(kind, kLiveNames[i]) == 0) {
      sum += static_cast<uint64_t>(live(static_cast<Live>(i)).load());
    }
  }
  return sum;
}
