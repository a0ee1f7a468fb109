#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace lb {

File::File(std::string path) : ByteSource(std::move(path)) {
  fd_ = ::open(name().c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw CheckpointError(cat(name(), ": cannot be opened: ", std::strerror(errno)));
  struct stat info{};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    throw CheckpointError(cat(name(), ": is not a regular file"));
  }
  size_ = static_cast<std::uint64_t>(info.st_size);
}

File::~File() { ::close(fd_); }

void File::read(std::uint64_t offset, void* target, std::uint64_t bytes) const {
  auto* out = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, out, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw CheckpointError(cat(name(), ": cannot be read at byte ", offset, ": ", std::strerror(errno)));
    if (got == 0) {
      throw CheckpointError(cat(name(), ": ends at byte ", offset, ", expected ", bytes,
                                " more bytes; the file changed or is truncated, fetch it again"));
    }
    out += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
  }
}

Memory::Memory(std::string name, std::span<const std::byte> bytes, std::shared_ptr<const void> owner)
    : ByteSource(std::move(name)), bytes_(bytes), owner_(std::move(owner)) {
  size_ = bytes.size();
}

void Memory::read(std::uint64_t offset, void* target, std::uint64_t bytes) const {
  LB_CHECK(offset <= size_ && bytes <= size_ - offset, name());
  std::memcpy(target, bytes_.data() + offset, bytes);
}

StoredTensor::StoredTensor(std::string name, DType dtype, std::vector<std::int64_t> shape,
                           std::vector<Segment> segments)
    : name_(std::move(name)), dtype_(dtype), shape_(std::move(shape)), segments_(std::move(segments)) {
  bytes_ = size_bytes(dtype);
  for (const std::int64_t extent : shape_) {
    if (extent <= 0 || __builtin_mul_overflow(bytes_, static_cast<std::uint64_t>(extent), &bytes_)) {
      throw CheckpointError(cat("'", name_, "' has the impossible shape ", shape_text(shape_)));
    }
  }
  std::uint64_t stored = 0;
  for (const Segment& segment : segments_) {
    std::uint64_t end = 0;
    if (__builtin_add_overflow(segment.offset, segment.bytes, &end) || end > segment.source->size()) {
      throw CheckpointError(cat(segment.source->name(), ": '", name_, "' lies at bytes ", segment.offset, " to ", end,
                                ", but it has ", segment.source->size(), "; it is truncated or damaged"));
    }
    stored += segment.bytes;  // cannot overflow: a source is shorter than 2^63 bytes, and segments are few
  }
  if (stored != bytes_) {
    throw CheckpointError(cat("'", name_, "' is ", lb::name(dtype), " ", shape_text(shape_), ", which is ", bytes_,
                              " bytes, but ", stored, " are stored"));
  }
}

void StoredTensor::read(std::uint64_t offset, void* target, std::uint64_t bytes) const {
  LB_CHECK(offset <= bytes_ && bytes <= bytes_ - offset, name_);
  auto* out = static_cast<char*>(target);
  for (const Segment& segment : segments_) {
    if (bytes == 0) return;
    if (offset >= segment.bytes) {
      offset -= segment.bytes;
      continue;
    }
    const std::uint64_t part = std::min(bytes, segment.bytes - offset);
    segment.source->read(segment.offset + offset, out, part);
    out += part;
    bytes -= part;
    offset = 0;
  }
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += cat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

}  // namespace lb
