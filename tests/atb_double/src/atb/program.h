#ifndef ATB_DOUBLE_SRC_ATB_PROGRAM_H
#define ATB_DOUBLE_SRC_ATB_PROGRAM_H

// What Setup makes of an operation: kernels in order, and where each finds its tensors. Immutable once made, and shared
// with the tasks that run it, so that an operation may be set up again or destroyed while its work is queued.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor.h"

namespace atb_double {

// Where a tensor is: the pack's nth input or output, or an offset in the workspace. `shift` is in bytes.
struct Place {
  enum class In { kInputs, kOutputs, kWorkspace };
  In where = In::kInputs;
  uint64_t index = 0;
  uint64_t shift = 0;
  bool operator==(const Place&) const = default;
};

struct Slot {
  Place place;
  TensorDesc desc;
  const void* host = nullptr;  // Host data of the pack's tensor, for the operations that read it during Setup.
};

using Kernel = std::function<void(std::span<const View> ins, std::span<const View> outs)>;

struct Launch {
  std::string name;
  Kernel kernel;
  std::vector<Slot> ins;
  std::vector<Slot> outs;
  uint32_t host_only = 0;                               // Bit i: input i is read from the host alone.
  std::vector<std::pair<uint32_t, uint32_t>> in_place;  // Input and output that must be one buffer.
};

struct HostTensor {
  const void* address = nullptr;
  std::vector<std::byte> seen;
};

struct Program {
  std::vector<Launch> launches;
  std::vector<HostTensor> host;  // What Setup read: it must not change before Execute.
  uint64_t workspace_bytes = 0;
  bool tiling_failed = false;

  // Room for an intermediate; ATB aligns them to 512 bytes.
  Place add_intermediate(uint64_t bytes) {
    const Place place{Place::In::kWorkspace, 0, workspace_bytes};
    workspace_bytes += (bytes + 511) / 512 * 512;
    return place;
  }
};

// The device addresses of one call to Execute.
struct Addresses {
  std::vector<void*> ins;
  std::vector<void*> outs;
  void* workspace = nullptr;
};

// Runs on the stream's thread; throws DeviceFault.
void run_program(const Program& program, const Addresses& addresses);

}  // namespace atb_double

#endif
