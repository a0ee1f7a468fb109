// The arrays of a step: on the device for kernels, on the host for those operations that read lengths during Setup.
#pragma once

#include <array>
#include <cstdint>

#include "backend/atb/device.h"
#include "backend/atb/operations.h"
#include "backend/backend.h"

namespace lb::npu {

// Whole prompts, prompts after cached prefixes, one token each, or anything else.
Phase classify(const StepBatch& batch, bool has_prefix_encoder);

// Every array is copied to pinned memory, all with one copy to the device. There are two sets, so that a step can be
// assembled while the one before is still being computed.
class StepInputs {
 public:
  StepInputs(const ProgramOptions& options, Slab& slab);

  // Makes pinned memory; `slab` has been allocated.
  void allocate(const Slab& slab);

  // Copies the arrays of `batch`; waits first for the step before the last one, if nobody has done so. Sets
  // the symbols of `extents`.
  void assemble(const StepBatch& batch, Phase phase, DType dtype, const Device& device, Extents& extents);
  // To be called when the stream has been waited for.
  void synchronized() { num_in_flight_ = 0; }

  // Sets the addresses of a tensor that is fed from here.
  void bind(Feed feed, atb::Tensor& tensor) const;

  std::int64_t bytes() const { return capacity_ + mask_.size(); }

 private:
  struct Place {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
  };
  struct Set {
    PinnedMemory ints;
    PinnedMemory mask;
  };

  std::int32_t* take(Feed feed, std::size_t count);
  void assemble_mask(const StepBatch& batch, DType dtype, const Device& device, std::int64_t context);

  const ProgramOptions& options_;
  std::int64_t capacity_ = 0;  // bytes of all int arrays of the largest step
  std::int64_t slab_offset_ = 0;
  std::byte* device_ints_ = nullptr;
  DeviceMemory mask_;
  std::array<Set, 2> sets_;
  std::size_t current_ = 0;
  int num_in_flight_ = 0;
  std::int64_t used_ = 0;  // bytes of the current set
  std::array<Place, kNumFeeds> places_{};
};

}  // namespace lb::npu
