// Page-aligned, zero-filled memory for weights, caches and arenas.
#pragma once

#include <cstddef>

namespace lb {

// Owns one anonymous mapping. Pages are committed on first touch, so an untouched part costs nothing; large mappings
// ask for huge pages, which a streaming reader needs to reach the machine's read bandwidth.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size_bytes);  // throws BackendError when the system has no memory left
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

template <class T>
constexpr T round_up(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <class T>
constexpr T ceil_div(T value, T divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace lb
