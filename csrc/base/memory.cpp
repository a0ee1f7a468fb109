#include "base/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace lb {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

Buffer::Buffer(std::size_t size_bytes) {
  if (size_bytes == 0) return;
  // Whole huge pages from an aligned start: map one page more than needed, then give back what lies outside.
  const bool huge = size_bytes >= kHugePage;
  const std::size_t alignment = huge ? kHugePage : std::size_t{4096};
  const std::size_t size = round_up(size_bytes, alignment);
  const std::size_t mapped = huge ? size + kHugePage : size;
  void* raw = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    throw BackendError(cat("cannot reserve ", size_bytes, " bytes of memory: ", std::strerror(errno),
                           "; use a smaller num_blocks, max_model_len or model"));
  }
  auto* start = static_cast<std::byte*>(raw);
  if (huge) {
    const auto address = reinterpret_cast<std::uintptr_t>(start);
    const std::size_t before = round_up(address, std::uintptr_t{kHugePage}) - address;
    const std::size_t after = mapped - size - before;
    if (before > 0) ::munmap(start, before);
    if (after > 0) ::munmap(start + before + size, after);
    start += before;
    ::madvise(start, size, MADV_HUGEPAGE);  // a wish: without huge pages everything works, more slowly
  }
  data_ = start;
  size_ = size;
}

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void return_free_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

}  // namespace lb
