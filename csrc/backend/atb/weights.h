// The weights of a model on a device.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "backend/atb/device.h"
#include "backend/atb/plan.h"
#include "backend/backend.h"
#include "base/thread_pool.h"

namespace lb::npu {

class DeviceWeights {
 public:
  // Adds a part of the weight called `name` in the checkpoint, and gives its index. Equal parts are kept once.
  std::size_t add(const std::string& name, const WeightPart& part);
  // Makes room for all of them.
  void plan(Slab& slab);
  // Reads, converts and copies them, in parallel and a few megabytes at a time. `slab` has been allocated.
  void upload(const Slab& slab, const Device& device, const WeightLookup& lookup, ThreadPool& pool,
              const std::function<void(std::int64_t, std::int64_t)>& on_progress) const;

  std::byte* at(const Slab& slab, std::size_t index) const { return slab.at(entries_[index].offset); }
  std::int64_t bytes() const;

 private:
  struct Entry {
    std::string name;
    WeightPart part;
    std::int64_t offset = 0;
  };

  std::vector<Entry> entries_;
  std::map<std::string, std::vector<std::size_t>> by_name_;
};

}  // namespace lb::npu
