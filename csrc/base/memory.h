// Page-aligned, zero-filled memory for weights, caches and arenas.
#pragma once

#include <cstddef>
#include <type_traits>

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

// An array of zeros in a Buffer: what is never written costs nothing.
template <class T>
class LazyArray {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  explicit LazyArray(std::size_t size) : buffer_(size * sizeof(T)), size_(size) {}

  T* data() { return reinterpret_cast<T*>(buffer_.data()); }
  std::size_t size() const { return size_; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  T& operator[](std::size_t i) { return data()[i]; }

 private:
  Buffer buffer_;
  std::size_t size_;
};

// Gives back to the system what the C library keeps of freed memory, where it can be asked to.
void return_free_memory();

template <class T>
constexpr T round_up(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <class T>
constexpr T ceil_div(T value, T divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace lb
