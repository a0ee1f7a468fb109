// Owners of what the device gives: the device itself with its stream and context, memory on it, pinned memory of the
// host.
//
// A thread that touches the device must have called Device::bind_thread(), destructors included.
#pragma once

#include <acl/acl.h>
#include <atb/atb_infer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace lb::npu {

// Starts ACL, once in a process. Throws BackendError.
void start_acl();
std::int64_t device_count();

// Lets this process use a device, and this thread; the last of its users resets it.
class DeviceUse {
 public:
  explicit DeviceUse(std::int32_t id);
  ~DeviceUse();
  DeviceUse(const DeviceUse&) = delete;
  DeviceUse& operator=(const DeviceUse&) = delete;

 private:
  const std::int32_t id_;
};

// Bytes of memory of this thread's device: free, total.
std::pair<std::int64_t, std::int64_t> device_memory();
// The chip's name, such as Ascend910B2.
std::string soc_name();

// One NPU as this process uses it. ATB's context takes some 500 MB on host and device, so there is one a device (and
// one for graph launch mode, if asked for), and one thread at a time may use it.
class Device {
 public:
  explicit Device(std::int32_t id);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void bind_thread() const;
  std::int32_t id() const { return id_; }
  const std::string& soc() const { return soc_; }
  aclrtStream stream() const { return stream_; }
  atb::Context* context() const { return context_; }
  // A second context, in graph launch mode; made when it is first asked for. Throws BackendError.
  atb::Context* graph_context();
  // Waits for everything on the stream; kernels that failed are reported here.
  void synchronize(std::string_view subject) const;
  // Copies on the stream.
  void upload(void* target, std::size_t room, const void* source, std::size_t bytes, std::string_view subject) const;
  void download(void* target, std::size_t room, const void* source, std::size_t bytes, std::string_view subject) const;
  void copy(void* target, std::size_t room, const void* source, std::size_t bytes, std::string_view subject) const;

 private:
  void make_context(atb::Context*& context) const;
  void release() noexcept;

  const std::int32_t id_;
  const DeviceUse use_;
  std::string soc_;
  aclrtStream stream_ = nullptr;
  atb::Context* context_ = nullptr;
  atb::Context* graph_context_ = nullptr;
};

// A stream beside the device's own, for loading.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  aclrtStream get() const { return stream_; }

 private:
  aclrtStream stream_ = nullptr;
};

namespace detail {
void* allocate_device(std::size_t bytes, std::string_view subject);
void* allocate_pinned(std::size_t bytes, std::string_view subject);
struct FreeDevice {
  void operator()(std::byte* memory) const noexcept { static_cast<void>(aclrtFree(memory)); }
};
struct FreePinned {
  void operator()(std::byte* memory) const noexcept { static_cast<void>(aclrtFreeHost(memory)); }
};

template <class Free, void* (*allocate)(std::size_t, std::string_view)>
class Memory {
 public:
  Memory() = default;
  Memory(std::int64_t bytes, std::string_view subject)
      : data_(static_cast<std::byte*>(allocate(static_cast<std::size_t>(bytes), subject))), size_(bytes) {}

  std::byte* data() const { return data_.get(); }
  std::int64_t size() const { return data_ == nullptr ? 0 : size_; }
  void reset() { data_.reset(); }

 private:
  std::unique_ptr<std::byte, Free> data_;
  std::int64_t size_ = 0;
};
}  // namespace detail

using DeviceMemory = detail::Memory<detail::FreeDevice, detail::allocate_device>;
using PinnedMemory = detail::Memory<detail::FreePinned, detail::allocate_pinned>;  // asynchronous copies need it

// One allocation for everything that lives as long as a program: sizes are added first, then it is allocated. Pieces
// lie at multiples of 512 bytes, as ATB lays out its own.
class Slab {
 public:
  static constexpr std::int64_t kAlignment = 512;

  std::int64_t add(std::int64_t bytes);  // gives its offset
  void allocate() { memory_ = DeviceMemory(bytes_, "weights, cache and activations"); }
  std::byte* at(std::int64_t offset) const { return memory_.data() + offset; }
  std::int64_t size() const { return bytes_; }

 private:
  std::int64_t bytes_ = 0;
  DeviceMemory memory_;
};

}  // namespace lb::npu
