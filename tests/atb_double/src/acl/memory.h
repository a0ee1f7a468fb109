#ifndef ATB_DOUBLE_SRC_ACL_MEMORY_H
#define ATB_DOUBLE_SRC_ACL_MEMORY_H

// Device and pinned host memory. Device addresses lie in a range that is mapped without access, so that the host faults
// when it touches one; kernels reach the same bytes through a second mapping. Fresh memory is all ones: NaN as any
// float type, -1 as any integer.

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace atb_double {

class Memory {
 public:
  static Memory& instance();

  void* allocate_device(uint64_t bytes);  // nullptr when there is no room.
  bool free_device(void* address);
  bool is_device(const void* address) const;
  uint64_t free_bytes() const;

  void* allocate_host(uint64_t bytes);
  bool free_host(void* address);
  bool is_pinned(const void* address, uint64_t bytes) const;

  // True when [address, address + bytes) lies in one live allocation.
  bool holds(const void* address, uint64_t bytes) const;
  // Where kernels and copies reach those bytes; throws DeviceFault naming `what` unless holds().
  std::byte* reach(const void* address, uint64_t bytes, const char* what) const;

 private:
  Memory();
  uint64_t find_room(uint64_t bytes) const;
  const std::pair<const uint64_t, uint64_t>* allocation(const void* address, uint64_t bytes) const;

  mutable std::mutex mutex_;
  uint64_t total_;
  uint64_t used_ = 0;
  int file_ = -1;
  std::byte* host_view_ = nullptr;       // No access.
  std::byte* device_view_ = nullptr;     // Read and write; absent in null mode.
  std::map<uint64_t, uint64_t> device_;  // Offset to bytes asked for.
  std::map<std::byte*, uint64_t> host_;
};

}  // namespace atb_double

#endif
