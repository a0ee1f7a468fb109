#include "backend/atb/executor.h"

#include <algorithm>
#include <utility>

#include "backend/atb/status.h"
#include "base/memory.h"
#include "base/thread_pool.h"

namespace lb::npu {

Executor::Executor(const Device& device) : device_(device), worker_([this] { work(); }) {
  wait_for(is_bound_, 1);
  if (bind_status_ == 0) return;
  stop();
  fail_acl(bind_status_, "aclrtSetDevice", "the thread that launches operations");
}

Executor::~Executor() {
  abandon();
  stop();
}

void Executor::stop() noexcept {
  stopping_ = true;
  queued_.store(num_queued_ + 1, std::memory_order_release);
  queued_.notify_all();
  worker_.join();
}

atb::Context* Executor::context_of(const Launch& launch) const {
  return launch.context == nullptr ? device_.context() : launch.context;
}

// In graph launch mode only the first Setup says how much workspace the operation takes.
void Executor::set_up(Launch& launch) {
  check_atb(launch.operation->Setup(launch.tensors, launch.workspace_bytes, context_of(launch)), "Setup", launch.name);
  if (launch.workspace_bytes > static_cast<std::uint64_t>(workspace_.size())) grow(launch.workspace_bytes, launch);
}

// Kernels that were launched may still use the old workspace.
void Executor::grow(std::uint64_t bytes, const Launch& launch) {
  constexpr std::int64_t kStep = std::int64_t{2} << 20;  // a huge page
  finish();
  device_.synchronize(launch.name);
  workspace_.reset();
  workspace_ = DeviceMemory(round_up(static_cast<std::int64_t>(bytes), kStep), "the workspace");
}

int Executor::execute(const Launch& launch) const {
  return launch.operation->Execute(launch.tensors, reinterpret_cast<std::uint8_t*>(workspace_.data()),
                                   launch.workspace_bytes, context_of(launch));
}

void Executor::prepare(Launch& launch) { set_up(launch); }

void Executor::run(Launch& launch) {
  set_up(launch);
  if (!launch.was_launched) {
    finish();
    check_atb(execute(launch), "Execute", launch.name);
    launch.was_launched = true;
    return;
  }
  wait_for(launched_, num_queued_ + 1 - kPlaces);
  launches_[num_queued_ % kPlaces] = &launch;
  queued_.store(++num_queued_, std::memory_order_release);
  queued_.notify_all();
}

void Executor::finish() {
  wait_for(launched_, num_queued_);
  const int failure = std::exchange(failure_, 0);
  const Launch* failed = std::exchange(failed_, nullptr);
  if (failed != nullptr) check_atb(failure, "Execute", failed->name);
}

void Executor::abandon() noexcept {
  wait_for(launched_, num_queued_);
  failure_ = 0;
  failed_ = nullptr;
}

void Executor::work() {
  bind_status_ = aclrtSetDevice(device_.id());
  is_bound_.store(1, std::memory_order_release);
  is_bound_.notify_all();
  for (std::uint32_t next = 0;; ++next) {
    wait_for(queued_, next + 1);
    if (stopping_) return;
    const Launch& launch = *launches_[next % kPlaces];
    if (failed_ == nullptr) {
      failure_ = execute(launch);
      if (failure_ != 0) failed_ = &launch;
    }
    launched_.store(next + 1, std::memory_order_release);
    launched_.notify_all();
  }
}

}  // namespace lb::npu
