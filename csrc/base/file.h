// Bytes that are read at explicit offsets, from a file or from memory, and tensors that are stored in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"

namespace lb {

// Where stored bytes come from. Reads take an offset, so threads may share one.
class ByteSource {
 public:
  explicit ByteSource(std::string name) : name_(std::move(name)) {}
  virtual ~ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  const std::string& name() const { return name_; }  // as messages call it: a path, or what the memory holds
  std::uint64_t size() const { return size_; }

  // Reads exactly `bytes` bytes at `offset`; throws CheckpointError when the source ends first.
  virtual void read(std::uint64_t offset, void* target, std::uint64_t bytes) const = 0;

 protected:
  std::uint64_t size_ = 0;

 private:
  std::string name_;
};

// Owns a file descriptor. Reading (rather than mapping) bounds the memory that a load needs and turns a file that
// shrinks underneath into an error instead of a SIGBUS.
class File final : public ByteSource {
 public:
  explicit File(std::string path);  // throws CheckpointError when it cannot be opened or is not a regular file
  ~File() override;

  void read(std::uint64_t offset, void* target, std::uint64_t bytes) const override;

 private:
  int fd_ = -1;
};

// Memory of a caller who already holds the bytes. `owner` keeps it alive and must free it on any thread.
class Memory final : public ByteSource {
 public:
  Memory(std::string name, std::span<const std::byte> bytes, std::shared_ptr<const void> owner);

  void read(std::uint64_t offset, void* target, std::uint64_t bytes) const override;

 private:
  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
};

// A contiguous range of stored bytes.
struct Segment {
  std::shared_ptr<const ByteSource> source;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

// A tensor as it is stored: row-major, little-endian. Its bytes are the segments one after another, so that a
// fused weight (rows q, k, v) can be read straight from a checkpoint that stores its parts.
class StoredTensor {
 public:
  // Throws CheckpointError when a segment leaves its source, or when dtype x shape is not the sum of the segments.
  StoredTensor(std::string name, DType dtype, std::vector<std::int64_t> shape, std::vector<Segment> segments);

  const std::string& name() const { return name_; }
  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::uint64_t bytes() const { return bytes_; }

  // Reads bytes [offset, offset + bytes) of the tensor.
  void read(std::uint64_t offset, void* target, std::uint64_t bytes) const;

 private:
  std::string name_;
  DType dtype_;
  std::vector<std::int64_t> shape_;
  std::vector<Segment> segments_;
  std::uint64_t bytes_ = 0;
};

// "[2, 3]", as messages show shapes.
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace lb
