// The C interface of the runtime: argument checks, failures on demand, then the classes beside this file.

#include <cstring>
#include <string>

#include "acl/acl.h"
#include "memory.h"
#include "state.h"
#include "stream.h"

namespace {

using namespace atb_double;

constexpr aclError kInvalidParam = 100000;
constexpr aclError kUninitialized = 100001;
constexpr aclError kRepeatedInit = 100002;
constexpr aclError kRtInvalidParam = 107000;
constexpr aclError kNoContext = 107002;
constexpr aclError kNotThisHandle = 107003;
constexpr aclError kOutOfMemory = 207001;
constexpr aclError kInternal = 507899;

std::atomic<bool> initialized = false;
std::atomic<bool> ever_initialized = false;
thread_local int32_t current_device = -1;

aclError refuse(aclError code, const std::string& message) {
  log_error(message);
  return code;
}

// What every call on a device needs.
aclError ready(const char* call) {
  if (!initialized) {
    return refuse(kUninitialized, std::string(call) + ": aclInit was not called");
  }
  if (current_device < 0) {
    return refuse(kNoContext, std::string(call) + ": this thread did not call aclrtSetDevice");
  }
  return ACL_SUCCESS;
}

#define ATB_DOUBLE_READY(call)                            \
  if (const aclError status = ready(call); status != 0) { \
    return status;                                        \
  }                                                       \
  if (injected(call)) {                                   \
    return kInternal;                                     \
  }

aclError check_copy(const char* call, const void* dst, size_t dest_max, const void* src, size_t count,
                    aclrtMemcpyKind kind) {
  const std::string name(call);
  if (dst == nullptr || src == nullptr || count > dest_max) {
    return refuse(kInvalidParam,
                  name + ": null pointer, or " + std::to_string(count) + " bytes into " + std::to_string(dest_max));
  }
  const Memory& memory = Memory::instance();
  const bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  const bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (kind != ACL_MEMCPY_DEFAULT && (memory.is_device(dst) != to_device || memory.is_device(src) != from_device)) {
    return refuse(kRtInvalidParam, name + ": the addresses do not fit kind " + std::to_string(kind));
  }
  if ((memory.is_device(dst) && !memory.holds(dst, count)) || (memory.is_device(src) && !memory.holds(src, count))) {
    return refuse(kRtInvalidParam, name + ": " + std::to_string(count) + " bytes overrun the device allocation");
  }
  const auto misaligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 64 != 0; };
  if (memory.is_device(dst) && memory.is_device(src) && (misaligned(dst) || misaligned(src))) {
    return refuse(kRtInvalidParam, name + ": copies on the device need 64-byte aligned addresses");
  }
  return ACL_SUCCESS;
}

// Runs on the stream's thread. A pinned buffer may have been freed since.
void copy_now(void* dst, const void* src, size_t count, bool dst_pinned, bool src_pinned) {
  const Memory& memory = Memory::instance();
  if ((dst_pinned && !memory.is_pinned(dst, count)) || (src_pinned && !memory.is_pinned(src, count))) {
    throw DeviceFault("aclrtMemcpyAsync: the pinned buffer was freed before the copy ran");
  }
  void* to = memory.is_device(dst) ? memory.reach(dst, count, "aclrtMemcpyAsync") : dst;
  const void* from = memory.is_device(src) ? memory.reach(src, count, "aclrtMemcpyAsync") : src;
  std::memmove(to, from, count);
}

aclError allocate(const char* call, void** address, size_t size) {
  ATB_DOUBLE_READY(call)
  if (address == nullptr || size == 0) {
    return refuse(kInvalidParam, std::string(call) + ": null pointer or zero bytes");
  }
  *address = Memory::instance().allocate_device(size);
  return *address == nullptr ? kOutOfMemory : ACL_SUCCESS;
}

}  // namespace

bool atb_double::device_is_set() { return current_device >= 0; }

aclError aclInit(const char*) {
  if (injected("aclInit")) {
    return kInternal;
  }
  if (ever_initialized.exchange(true)) {
    return refuse(kRepeatedInit, "aclInit: at most once per process");
  }
  initialized = true;
  return ACL_SUCCESS;
}

aclError aclFinalize() {
  if (!initialized.exchange(false)) {
    return refuse(kUninitialized, "aclFinalize: aclInit was not called");
  }
  const std::string leaked = live_summary();
  if (!leaked.empty()) {
    log_error("aclFinalize: still alive:" + leaked);
  }
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
  if (!initialized) {
    return refuse(kUninitialized, "aclrtSetDevice: aclInit was not called");
  }
  if (injected("aclrtSetDevice")) {
    return kInternal;
  }
  if (device < 0 || device >= static_cast<int32_t>(settings().devices)) {
    return refuse(kRtInvalidParam, "aclrtSetDevice: there is no device " + std::to_string(device));
  }
  current_device = device;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t device) {
  if (device != current_device) {
    return refuse(kRtInvalidParam, "aclrtResetDevice: device " + std::to_string(device) + " is not this thread's");
  }
  current_device = -1;
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t* device) {
  ATB_DOUBLE_READY("aclrtGetDevice")
  *device = current_device;
  return ACL_SUCCESS;
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  if (injected("aclrtGetDeviceCount")) {
    return kInternal;
  }
  *count = settings().devices;
  return ACL_SUCCESS;
}

const char* aclrtGetSocName() { return settings().soc.c_str(); }

aclError aclrtSynchronizeDevice() {
  if (const aclError status = ready("aclrtSynchronizeDevice"); status != 0) {
    return status;
  }
  const aclError status = Stream::synchronize_all();
  return injected("aclrtSynchronizeDevice") ? kInternal : status;
}

aclError aclrtCreateStream(aclrtStream* stream) {
  ATB_DOUBLE_READY("aclrtCreateStream")
  *stream = new Stream;
  return ACL_SUCCESS;
}

aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) { return aclrtCreateStream(stream); }

aclError aclrtDestroyStream(aclrtStream stream) {
  Stream* found = Stream::from(stream);
  if (found == nullptr) {
    return refuse(kNotThisHandle, "aclrtDestroyStream: not a live stream");
  }
  if (found->busy()) {
    log_error("aclrtDestroyStream: work is still queued, synchronise first");
  }
  delete found;
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  if (const aclError status = ready("aclrtSynchronizeStream"); status != 0) {
    return status;
  }
  Stream* found = Stream::from(stream);
  if (found == nullptr) {
    return refuse(kNotThisHandle, "aclrtSynchronizeStream: not a live stream");
  }
  const aclError status = found->synchronize();  // Even when the call shall fail: nothing stays in flight.
  return injected("aclrtSynchronizeStream") ? kInternal : status;
}

aclError aclrtCreateEvent(aclrtEvent* event) {
  ATB_DOUBLE_READY("aclrtCreateEvent")
  *event = Event::create();
  return ACL_SUCCESS;
}

aclError aclrtDestroyEvent(aclrtEvent event) {
  return Event::destroy(event) ? ACL_SUCCESS : refuse(kRtInvalidParam, "aclrtDestroyEvent: not a live event");
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  ATB_DOUBLE_READY("aclrtRecordEvent")
  const auto found = Event::from(event);
  if (found == nullptr || Stream::from(stream) == nullptr) {
    return refuse(kRtInvalidParam, "aclrtRecordEvent: not a live event and stream");
  }
  found->record(*Stream::from(stream));
  return ACL_SUCCESS;
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  ATB_DOUBLE_READY("aclrtStreamWaitEvent")
  const auto found = Event::from(event);
  if (found == nullptr || Stream::from(stream) == nullptr) {
    return refuse(kRtInvalidParam, "aclrtStreamWaitEvent: not a live event and stream");
  }
  found->wait_on(*Stream::from(stream));
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  ATB_DOUBLE_READY("aclrtSynchronizeEvent")
  const auto found = Event::from(event);
  if (found == nullptr) {
    return refuse(kRtInvalidParam, "aclrtSynchronizeEvent: not a live event");
  }
  found->synchronize();
  return ACL_SUCCESS;
}

aclError aclrtMalloc(void** address, size_t size, aclrtMemMallocPolicy) {
  return allocate("aclrtMalloc", address, size);
}

aclError aclrtMallocAlign32(void** address, size_t size, aclrtMemMallocPolicy) {
  return allocate("aclrtMallocAlign32", address, size);
}

aclError aclrtFree(void* address) {
  if (Stream::any_busy()) {
    log_error("aclrtFree: queued work may use the memory, synchronise first");
  }
  return Memory::instance().free_device(address) ? ACL_SUCCESS
                                                 : refuse(kRtInvalidParam, "aclrtFree: not a live device allocation");
}

aclError aclrtMallocHost(void** address, size_t size) {
  ATB_DOUBLE_READY("aclrtMallocHost")
  if (address == nullptr || size == 0) {
    return refuse(kInvalidParam, "aclrtMallocHost: null pointer or zero bytes");
  }
  *address = Memory::instance().allocate_host(size);
  return ACL_SUCCESS;
}

aclError aclrtFreeHost(void* address) {
  return Memory::instance().free_host(address) ? ACL_SUCCESS
                                               : refuse(kRtInvalidParam, "aclrtFreeHost: not a live pinned allocation");
}

aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t* free, size_t* total) {
  ATB_DOUBLE_READY("aclrtGetMemInfo")
  if (attribute != ACL_HBM_MEM) {
    return refuse(kInvalidParam, "aclrtGetMemInfo: the double knows ACL_HBM_MEM alone");
  }
  *free = Memory::instance().free_bytes();
  *total = settings().memory_bytes;
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void* dst, size_t dest_max, const void* src, size_t count, aclrtMemcpyKind kind) {
  ATB_DOUBLE_READY("aclrtMemcpy")
  if (const aclError status = check_copy("aclrtMemcpy", dst, dest_max, src, count, kind); status != 0) {
    return status;
  }
  if (settings().executes) {
    copy_now(dst, src, count, false, false);
  }
  return ACL_SUCCESS;
}

aclError aclrtMemcpyAsync(void* dst, size_t dest_max, const void* src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  ATB_DOUBLE_READY("aclrtMemcpyAsync")
  if (const aclError status = check_copy("aclrtMemcpyAsync", dst, dest_max, src, count, kind); status != 0) {
    return status;
  }
  Stream* found = Stream::from(stream);
  if (found == nullptr) {
    return refuse(kNotThisHandle, "aclrtMemcpyAsync: not a live stream");
  }
  if (settings().executes) {
    const bool dst_pinned = Memory::instance().is_pinned(dst, count);
    const bool src_pinned = Memory::instance().is_pinned(src, count);
    found->enqueue({[=] { copy_now(dst, src, count, dst_pinned, src_pinned); }});
  }
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode) {
  ATB_DOUBLE_READY("aclmdlRICaptureBegin")
  Stream* found = Stream::from(stream);
  if (found == nullptr || !found->begin_capture()) {
    return refuse(kRtInvalidParam, "aclmdlRICaptureBegin: not a live stream, or already being captured");
  }
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI* captured) {
  ATB_DOUBLE_READY("aclmdlRICaptureEnd")
  Stream* found = Stream::from(stream);
  auto tasks = found == nullptr ? nullptr : found->end_capture();
  if (tasks == nullptr) {
    return refuse(kRtInvalidParam, "aclmdlRICaptureEnd: the stream is not being captured");
  }
  *captured = tasks.release();
  ++live(Live::kCapture);
  return ACL_SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI captured, aclrtStream stream) {
  ATB_DOUBLE_READY("aclmdlRIExecuteAsync")
  Stream* found = Stream::from(stream);
  if (found == nullptr || captured == nullptr) {
    return refuse(kRtInvalidParam, "aclmdlRIExecuteAsync: not a capture and a live stream");
  }
  found->play(*static_cast<std::vector<Task>*>(captured));
  return ACL_SUCCESS;
}

aclError aclmdlRIDestroy(aclmdlRI captured) {
  delete static_cast<std::vector<Task>*>(captured);
  --live(Live::kCapture);
  return ACL_SUCCESS;
}
