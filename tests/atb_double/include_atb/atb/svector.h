#ifndef ATB_DOUBLE_ATB_SVECTOR_H
#define ATB_DOUBLE_ATB_SVECTOR_H

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <stdexcept>

#include "atb/double_release.h"

namespace atb {

constexpr std::size_t DEFAULT_SVECTOR_SIZE = 64;
constexpr std::size_t MAX_SVECTOR_SIZE = 256;

// A vector with 64 inline slots, at most 256 elements. Like the original it drops an initializer list that is longer
// than the inline slots.
template <typename T>
class SVector {
 public:
  SVector() = default;
  SVector(std::initializer_list<T> values) {
    if (values.size() <= DEFAULT_SVECTOR_SIZE) {
      std::copy(values.begin(), values.end(), storage_);
      size_ = values.size();
    }
  }
  SVector(const SVector& other) { assign(other); }
  SVector& operator=(const SVector& other) {
    if (this != &other) {
      assign(other);
    }
    return *this;
  }
  ~SVector() { delete[] heap_; }

  // Before CANN 8.3 nothing beyond the inline slots without reserve().
  void push_back(const T& value) {
    if (size_ == capacity_) {
#if ATB_DOUBLE_RELEASE < 830
      throw std::length_error("SVector: push_back beyond the reserved capacity");
#else
      const T copy = value;
      reserve(std::min(2 * capacity_, MAX_SVECTOR_SIZE));
      resize(size_ + 1);
      data()[size_ - 1] = copy;
      return;
#endif
    }
    data()[size_++] = value;
  }
  void reserve(std::size_t capacity) {
    if (capacity > MAX_SVECTOR_SIZE) {
      throw std::length_error("SVector holds at most 256 elements");
    }
    if (capacity <= capacity_) {
      return;
    }
    T* grown = new T[capacity]();
    std::copy(begin(), end(), grown);
    delete[] heap_;
    heap_ = grown;
    capacity_ = capacity;
  }
  void resize(std::size_t size) {
    if (size > capacity_) {
#if ATB_DOUBLE_RELEASE < 830
      throw std::length_error("SVector: resize beyond the reserved capacity");
#else
      reserve(size);
#endif
    }
    size_ = size;
  }
  void insert(std::size_t position, const T& value) {
    at_or_throw(position, size_ + 1);
    push_back(value);
    std::rotate(begin() + position, end() - 1, end());
  }
  void clear() noexcept { size_ = 0; }

  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  T* data() noexcept { return heap_ == nullptr ? storage_ : heap_; }
  const T* data() const noexcept { return heap_ == nullptr ? storage_ : heap_; }
  T* begin() noexcept { return data(); }
  const T* begin() const noexcept { return data(); }
  T* end() noexcept { return data() + size_; }
  const T* end() const noexcept { return data() + size_; }
  T& at(std::size_t i) { return data()[at_or_throw(i, size_)]; }
  const T& at(std::size_t i) const { return data()[at_or_throw(i, size_)]; }
  T& operator[](std::size_t i) { return at(i); }
  const T& operator[](std::size_t i) const { return at(i); }

 private:
  static std::size_t at_or_throw(std::size_t i, std::size_t size) {
    if (i >= size) {
      throw std::out_of_range("SVector: index beyond its size");
    }
    return i;
  }
  void assign(const SVector& other) {
    size_ = 0;
    reserve(other.size_);
    std::copy(other.begin(), other.end(), data());
    size_ = other.size_;
  }

  T storage_[DEFAULT_SVECTOR_SIZE + 1]{};
  std::size_t capacity_ = DEFAULT_SVECTOR_SIZE;
  std::size_t size_ = 0;
  T* heap_ = nullptr;
};

}  // namespace atb

#endif
