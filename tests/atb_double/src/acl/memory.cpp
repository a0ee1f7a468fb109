#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "state.h"

namespace atb_double {
namespace {

constexpr uint64_t kAlignment = 512;
constexpr uint64_t kGap = 512;  // Between allocations, so that an overrun never lands in the next one.
constexpr uint64_t kPage = 4096;

uint64_t align_up(uint64_t bytes, uint64_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

std::byte* map(uint64_t bytes, int protection, int flags, int file) {
  void* address = mmap(nullptr, bytes, protection, flags | MAP_NORESERVE, file, 0);
  if (address == MAP_FAILED) {
    std::abort();
  }
  return static_cast<std::byte*>(address);
}

}  // namespace

Memory& Memory::instance() {
  static Memory* memory = new Memory;
  return *memory;
}

Memory::Memory() : total_(align_up(settings().memory_bytes, kPage)) {
  host_view_ = map(total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  if (settings().executes) {
    file_ = memfd_create("atb_double", MFD_CLOEXEC);
    if (file_ < 0 || ftruncate(file_, static_cast<off_t>(total_)) != 0) {
      std::abort();
    }
    device_view_ = map(total_, PROT_READ | PROT_WRITE, MAP_SHARED, file_);
  }
}

// First fit.
uint64_t Memory::find_room(uint64_t bytes) const {
  uint64_t offset = 0;
  for (const auto& [begin, size] : device_) {
    if (begin >= offset + bytes + kGap) {
      break;
    }
    offset = align_up(begin + size + kGap, kAlignment);
  }
  return offset;
}

void* Memory::allocate_device(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > total_) {
    return nullptr;
  }
  const uint64_t offset = find_room(bytes);
  if (offset + bytes > total_) {
    return nullptr;
  }
  device_.emplace(offset, bytes);
  used_ += align_up(bytes + kGap, kAlignment);
  if (device_view_ != nullptr) {
    std::memset(device_view_ + offset, 0xFF, bytes);
  }
  ++live(Live::kDeviceMemory);
  live(Live::kDeviceBytes) += static_cast<int64_t>(bytes);
  return host_view_ + offset;
}

bool Memory::free_device(void* address) {
  const std::lock_guard lock(mutex_);
  const auto found = is_device(address)
                         ? device_.find(static_cast<uint64_t>(static_cast<std::byte*>(address) - host_view_))
                         : device_.end();
  if (found == device_.end()) {
    return false;
  }
  const auto [offset, bytes] = *found;
  const uint64_t first = align_up(offset, kPage);
  const uint64_t last = (offset + bytes) / kPage * kPage;
  if (device_view_ != nullptr && first < last) {
    madvise(device_view_ + first, last - first, MADV_REMOVE);
  }
  used_ -= align_up(bytes + kGap, kAlignment);
  --live(Live::kDeviceMemory);
  live(Live::kDeviceBytes) -= static_cast<int64_t>(bytes);
  device_.erase(found);
  return true;
}

bool Memory::is_device(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  return at >= host_view_ && at < host_view_ + total_;
}

uint64_t Memory::free_bytes() const {
  const std::lock_guard lock(mutex_);
  return total_ - std::min(used_, total_);
}

void* Memory::allocate_host(uint64_t bytes) {
  std::byte* address = map(align_up(bytes, kPage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  const std::lock_guard lock(mutex_);
  host_.emplace(address, bytes);
  ++live(Live::kHostMemory);
  return address;
}

bool Memory::free_host(void* address) {
  const std::lock_guard lock(mutex_);
  const auto found = host_.find(static_cast<std::byte*>(address));
  if (found == host_.end()) {
    return false;
  }
  munmap(found->first, align_up(found->second, kPage));
  host_.erase(found);
  --live(Live::kHostMemory);
  return true;
}

bool Memory::is_pinned(const void* address, uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  const auto* at = static_cast<const std::byte*>(address);
  auto next = host_.upper_bound(const_cast<std::byte*>(at));
  if (next == host_.begin()) {
    return false;
  }
  --next;
  return at + bytes <= next->first + next->second;
}

const std::pair<const uint64_t, uint64_t>* Memory::allocation(const void* address, uint64_t bytes) const {
  if (!is_device(address)) {
    return nullptr;
  }
  const auto offset = static_cast<uint64_t>(static_cast<const std::byte*>(address) - host_view_);
  auto next = device_.upper_bound(offset);
  if (next == device_.begin()) {
    return nullptr;
  }
  --next;
  return offset + bytes <= next->first + next->second ? &*next : nullptr;
}

bool Memory::holds(const void* address, uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  return allocation(address, bytes) != nullptr;
}

std::byte* Memory::reach(const void* address, uint64_t bytes, const char* what) const {
  const std::lock_guard lock(mutex_);
  if (allocation(address, bytes) == nullptr) {
    const char* kind = address == nullptr   ? "a null pointer"
                       : is_device(address) ? "device memory that is not (or no longer) allocated in full"
                                            : "host memory";
    throw DeviceFault(std::string(what) + ": " + std::to_string(bytes) + " bytes expected in device memory, found " +
                      kind);
  }
  return device_view_ + (static_cast<const std::byte*>(address) - host_view_);
}

}  // namespace atb_double
