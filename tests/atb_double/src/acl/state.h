#ifndef ATB_DOUBLE_SRC_ACL_STATE_H
#define ATB_DOUBLE_SRC_ACL_STATE_H

// What the whole double shares: settings from the environment, the log of violations, failures on demand, and the count
// of live objects. All functions may be called from any thread.

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace atb_double {

struct Settings {
  std::string soc = "Ascend910B2";      // ATB_DOUBLE_SOC
  bool executes = true;                 // ATB_DOUBLE_MODE: compute, or null: every check, but no memory and no kernels
  bool lazy = false;                    // ATB_DOUBLE_SCHEDULE: eager, or lazy: streams run only when somebody waits
  bool workspace_rises = false;         // ATB_DOUBLE_WORKSPACE: steady, or rising: each Setup wants more than the last
  uint64_t memory_bytes = 256U << 20U;  // ATB_DOUBLE_HBM_BYTES; 64 GiB in null mode
  uint32_t devices = 8;                 // ATB_DOUBLE_DEVICES
  int comm_timeout_seconds = 120;       // ATB_DOUBLE_COMM_TIMEOUT_S
};

const Settings& settings();
bool is_910b();
bool is_310p();

// Records a violated rule, here and in the file that ATB_DOUBLE_LOG_FILE names.
void log_error(const std::string& message);
void log_line(const std::string& line);

// Counts a call; true when this one shall fail. `in_any` tells whether the count of "any" includes it.
bool injected(std::string_view call, bool in_any = true);

bool device_is_set();  // Whether the calling thread chose a device.

// What a kernel throws when the device would stop with an exception.
struct DeviceFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Live { kDeviceMemory, kDeviceBytes, kHostMemory, kStream, kEvent, kContext, kOperation, kCapture };
constexpr int kLiveKinds = 8;
std::atomic<int64_t>& live(Live kind);
std::string live_summary();  // Empty when nothing is alive.

}  // namespace atb_double

#endif
