// A read-only file that is read at explicit offsets, and tensors that are stored in such files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace lb {

// Owns a file descriptor. Reads take an offset, so threads may share one File. Reading (rather than mapping) bounds the
// memory that a load needs and turns a file that shrinks underneath into an error instead of a SIGBUS.
class File {
 public:
  explicit File(std::string path);  // throws CheckpointError when it cannot be opened or is not a regular file
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }

  // Reads exactly `bytes` bytes at `offset`; throws CheckpointError when the file ends first.
  void read(std::uint64_t offset, void* target, std::uint64_t bytes) const;

 private:
  std::string path_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
};

// A contiguous range of bytes of a file.
struct Segment {
  std::shared_ptr<const File> file;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

// A tensor as it lies in its files: row-major, little-endian. Its bytes are the segments one after another, so that a
// fused weight (rows q, k, v) can be read straight from a checkpoint that stores its parts.
class StoredTensor {
 public:
  // Throws CheckpointError when a segment leaves its file, or when dtype x shape is not the sum of the segments.
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
