#include "backend/atb/device.h"

#include <map>
#include <mutex>

#include "backend/atb/graph_launch.h"
#include "backend/atb/status.h"
#include "base/error.h"
#include "base/memory.h"

namespace lb::npu {
namespace {

// ACL can be started once in a process, and may have been by someone else.
constexpr int kStartedBefore = 100002;

// How often each device is used in this process.
std::mutex users_mutex;

std::map<std::int32_t, int>& users() {
  static std::map<std::int32_t, int> counts;
  return counts;
}

}  // namespace

void start_acl() {
  static const int status = aclInit(nullptr);
  if (status != kStartedBefore) check_acl(status, "aclInit", "this process");
}

std::int64_t device_count() {
  std::uint32_t count = 0;
  check_acl(aclrtGetDeviceCount(&count), "aclrtGetDeviceCount", "this host");
  return count;
}

DeviceUse::DeviceUse(std::int32_t id) : id_(id) {
  start_acl();
  const std::int64_t count = device_count();
  if (id < 0 || id >= count) {
    throw BackendError(cat("atb backend: there is no device ", id, ", this host has ", count,
                           "; choose another device_id, and see `llm-boost doctor`"));
  }
  check_acl(aclrtSetDevice(id), "aclrtSetDevice", cat("device ", id));
  const std::lock_guard lock(users_mutex);
  ++users()[id];
}

DeviceUse::~DeviceUse() {
  const std::lock_guard lock(users_mutex);
  if (--users()[id_] == 0) static_cast<void>(aclrtResetDevice(id_));
}

std::pair<std::int64_t, std::int64_t> device_memory() {
  std::size_t free = 0;
  std::size_t total = 0;
  check_acl(aclrtGetMemInfo(ACL_HBM_MEM, &free, &total), "aclrtGetMemInfo", "the device's memory");
  return {static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

std::string soc_name() {
  const char* name = aclrtGetSocName();
  return name == nullptr ? "" : name;
}

Device::Device(std::int32_t id) : id_(id), use_(id), soc_(soc_name()) {
  try {
    check_acl(aclrtCreateStream(&stream_), "aclrtCreateStream", cat("device ", id));
    make_context(context_);
  } catch (...) {
    release();
    throw;
  }
}

void Device::make_context(atb::Context*& context) const {
  check_atb(atb::CreateContext(&context), "CreateContext", cat("device ", id_));
  check_atb(context->SetExecuteStream(stream_), "SetExecuteStream", cat("device ", id_));
}

atb::Context* Device::graph_context() {
  if (graph_context_ == nullptr) {
    atb::Context* context = nullptr;
    try {
      make_context(context);
      use_graph_launch(*context);
    } catch (...) {
      if (context != nullptr) static_cast<void>(atb::DestroyContext(context));
      throw;
    }
    graph_context_ = context;
  }
  return graph_context_;
}

Device::~Device() {
  static_cast<void>(aclrtSetDevice(id_));
  release();
}

void Device::release() noexcept {
  if (stream_ != nullptr) static_cast<void>(aclrtDestroyStream(stream_));
  for (atb::Context* context : {graph_context_, context_}) {
    if (context != nullptr) static_cast<void>(atb::DestroyContext(context));
  }
}

void Device::bind_thread() const { check_acl(aclrtSetDevice(id_), "aclrtSetDevice", cat("device ", id_)); }

void Device::synchronize(std::string_view subject) const {
  check_acl(aclrtSynchronizeStream(stream_), "aclrtSynchronizeStream", subject);
}

void Device::upload(void* target, std::size_t room, const void* source, std::size_t bytes,
                    std::string_view subject) const {
  check_acl(aclrtMemcpyAsync(target, room, source, bytes, ACL_MEMCPY_HOST_TO_DEVICE, stream_),
            "aclrtMemcpyAsync to the device", subject);
}

void Device::download(void* target, std::size_t room, const void* source, std::size_t bytes,
                      std::string_view subject) const {
  check_acl(aclrtMemcpyAsync(target, room, source, bytes, ACL_MEMCPY_DEVICE_TO_HOST, stream_),
            "aclrtMemcpyAsync to the host", subject);
}

void Device::copy(void* target, std::size_t room, const void* source, std::size_t bytes,
                  std::string_view subject) const {
  check_acl(aclrtMemcpyAsync(target, room, source, bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, stream_),
            "aclrtMemcpyAsync on the device", subject);
}

Stream::Stream() { check_acl(aclrtCreateStream(&stream_), "aclrtCreateStream", "loading"); }

Stream::~Stream() {
  static_cast<void>(aclrtSynchronizeStream(stream_));
  static_cast<void>(aclrtDestroyStream(stream_));
}

void* detail::allocate_device(std::size_t bytes, std::string_view subject) {
  void* memory = nullptr;
  check_acl(aclrtMalloc(&memory, bytes, ACL_MEM_MALLOC_HUGE_FIRST), cat("aclrtMalloc of ", bytes, " bytes"), subject);
  return memory;
}

void* detail::allocate_pinned(std::size_t bytes, std::string_view subject) {
  void* memory = nullptr;
  check_acl(aclrtMallocHost(&memory, bytes), cat("aclrtMallocHost of ", bytes, " bytes"), subject);
  return memory;
}

std::int64_t Slab::add(std::int64_t bytes) {
  const std::int64_t offset = bytes_;
  bytes_ += round_up(std::max<std::int64_t>(bytes, 1), kAlignment);
  return offset;
}

}  // namespace lb::npu
