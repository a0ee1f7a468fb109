#include "context.h"

#include "acl/state.h"
#include "acl/stream.h"
#include "atb/base.h"

namespace atb_double {
namespace {

thread_local atb::ExecuteType execute_type = atb::EXECUTE_NORMAL;

Status create(atb::Context** context, uint64_t tiling_blocks) {
  if (injected("CreateContext")) {
    return atb::ERROR_OUT_OF_DEVICE_MEMORY;
  }
  if (context == nullptr) {
    return refuse(atb::ERROR_INVALID_PARAM, "CreateContext", "null pointer");
  }
  if (!device_is_set()) {
    return refuse(atb::ERROR_RT_FAIL, "CreateContext", "this thread did not call aclrtSetDevice");
  }
  *context = new ContextImpl(tiling_blocks);
  return atb::NO_ERROR;
}

}  // namespace

ContextImpl::ContextImpl(uint64_t tiling_blocks) : tiling_blocks_(tiling_blocks) { ++live(Live::kContext); }

ContextImpl::~ContextImpl() {
  if (operations_set_up != 0) {
    log_error("DestroyContext: destroy the " + std::to_string(operations_set_up) + " operations set up with it first");
  }
  --live(Live::kContext);
}

Status ContextImpl::SetExecuteStream(aclrtStream stream) {
  if (Stream::from(stream) == nullptr) {
    return refuse(atb::ERROR_INVALID_PARAM, "SetExecuteStream", "not a live stream");
  }
  streams_ = {stream};
  return atb::NO_ERROR;
}

aclrtStream ContextImpl::GetExecuteStream() const { return stream(0); }

Status ContextImpl::SetAsyncTilingCopyStatus(bool enable) {
  async_tiling_copy_ = enable;
  return atb::NO_ERROR;
}

bool ContextImpl::GetAsyncTilingCopyStatus() const { return async_tiling_copy_; }

Status ContextImpl::SetExecuteStreams(const std::vector<aclrtStream>& streams) {
  for (const aclrtStream handle : streams) {
    if (Stream::from(handle) == nullptr) {
      return refuse(atb::ERROR_INVALID_PARAM, "SetExecuteStreams", "not a live stream");
    }
  }
  streams_ = streams;
  return atb::NO_ERROR;
}

std::vector<aclrtStream> ContextImpl::GetExecuteStreams() { return streams_; }

Status ContextImpl::SetExecuteType(atb::ExecuteType type) {
  execute_type = type;
  return atb::NO_ERROR;
}

atb::ExecuteType ContextImpl::GetExecuteType() { return execute_type; }

#if ATB_DOUBLE_RELEASE >= 820
Status ContextImpl::SetLaunchMode(atb::LaunchMode mode) {
  if (operations_set_up != 0) {
    return refuse(atb::ERROR_INVALID_PARAM, "SetLaunchMode", "must come before the first Setup");
  }
  captures_ = mode == atb::GRAPH_LAUNCH_MODE;
  return atb::NO_ERROR;
}

atb::LaunchMode ContextImpl::GetLaunchMode() { return captures_ ? atb::GRAPH_LAUNCH_MODE : atb::KERNEL_LAUNCH_MODE; }
#endif

bool ContextImpl::enter_setup() {
  if (in_setup_.exchange(true)) {
    log_error("Setup: two threads set up operations of one context at the same time");
    return false;
  }
  const std::lock_guard lock(mutex_);
  const std::thread::id self = std::this_thread::get_id();
  if (self != setup_thread_) {
    if (retired_threads_.count(self) != 0) {
      log_error("Setup: two threads take turns in setting up operations of one context");
      in_setup_ = false;
      return false;
    }
    if (setup_thread_ != std::thread::id()) {
      retired_threads_.insert(setup_thread_);
    }
    setup_thread_ = self;
  }
  return true;
}

bool ContextImpl::is_setup_thread() {
  const std::lock_guard lock(mutex_);
  return std::this_thread::get_id() == setup_thread_;
}

}  // namespace atb_double

namespace atb {

using namespace atb_double;

constexpr uint32_t kDefaultTilingBlocks = 128;

Status CreateContext(Context** context) { return create(context, kDefaultTilingBlocks); }

#if ATB_DOUBLE_RELEASE >= 820
Status CreateContext(Context** context, const std::function<void*(size_t)>& alloc,
                     const std::function<void(void*)>& dealloc) {
  if (static_cast<bool>(alloc) != static_cast<bool>(dealloc)) {
    return refuse(ERROR_INVALID_PARAM, "CreateContext", "alloc and dealloc come together or not at all");
  }
  return create(context, kDefaultTilingBlocks);
}
#endif

#if ATB_DOUBLE_RELEASE >= 850
Status CreateContext(Context** context, uint32_t host_blocks, uint32_t device_blocks) {
  if (host_blocks < 128 || host_blocks > 1024 || device_blocks < 32 || device_blocks > 1024) {
    return refuse(ERROR_INVALID_PARAM, "CreateContext", "128..1024 host and 32..1024 device tiling blocks expected");
  }
  return create(context, host_blocks);
}
#endif

Status DestroyContext(Context* context) {
  if (context == nullptr) {
    return refuse(ERROR_INVALID_PARAM, "DestroyContext", "null pointer");
  }
  delete context;
  return NO_ERROR;
}

}  // namespace atb
