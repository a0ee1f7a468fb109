// Lets the ranks that share a model agree on a number: they must compute the same steps.
#pragma once

#include <cstdint>

#include "backend/atb/device.h"
#include "backend/atb/executor.h"
#include "backend/atb/plan.h"

namespace lb::npu {

class Agreement {
 public:
  // Takes its room from `slab`, which is allocated later.
  Agreement(const Target& target, Slab& slab);
  // Makes the operation that gathers the numbers. With one rank there is nothing to make.
  void prepare(const Slab& slab);

  // The smallest number that any rank gives; each must call it. 0 to 2^31 - 1.
  std::int64_t smallest(std::int64_t mine, const Device& device, Executor& executor);

 private:
  const Target& target_;
  std::int64_t offset_ = 0;
  std::byte* device_numbers_ = nullptr;  // mine, and 512 bytes further those of all
  PinnedMemory staging_;
  Launch launch_;
};

}  // namespace lb::npu
