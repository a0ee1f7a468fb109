// Runs operations in order: Setup on the caller's thread, Execute on a worker, so that the host prepares one operation
// while it launches the one before.
//
// ATB's rules for that: one thread calls Setup on a context; an operation's Setup and Execute never overlap; Setup is
// at most 127 operations ahead. So the caller must finish() before it uses an operation again, and there are 64 places.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

#include "backend/atb/device.h"
#include "backend/atb/operations.h"

namespace lb::npu {

// An operation with its tensors.
struct Launch {
  std::string name;  // for messages
  OperationPtr operation;
  atb::VariantPack tensors;
  atb::Context* context = nullptr;  // the device's own where it is not set
  std::uint64_t workspace_bytes = 0;
  bool was_launched = false;
};

class Executor {
 public:
  explicit Executor(const Device& device);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Sets an operation up and lets the worker launch it. The first time it launches it before it returns: that is when
  // ranks meet. Throws BackendError when Setup fails; a failed Execute may be thrown by finish() only.
  void run(Launch& launch);
  // Setup alone, which finds out how much workspace the operation takes.
  void prepare(Launch& launch);
  // Waits until all has been launched; what was launched after a failure is skipped. The device may still be busy.
  void finish();
  // As finish(), after an error that is being handled already.
  void abandon() noexcept;

  std::int64_t workspace_bytes() const { return workspace_.size(); }

 private:
  static constexpr std::uint32_t kPlaces = 64;

  void stop() noexcept;
  atb::Context* context_of(const Launch& launch) const;
  void set_up(Launch& launch);
  void grow(std::uint64_t bytes, const Launch& launch);
  int execute(const Launch& launch) const;
  void work();

  const Device& device_;
  DeviceMemory workspace_;  // shared by all operations: they run one after another
  std::array<const Launch*, kPlaces> launches_{};
  bool stopping_ = false;
  std::uint32_t num_queued_ = 0;  // of the caller alone
  // The worker's first failure, until finish() takes it.
  int failure_ = 0;
  const Launch* failed_ = nullptr;
  int bind_status_ = 0;
  std::atomic<std::uint32_t> is_bound_{0};
  alignas(64) std::atomic<std::uint32_t> queued_{0};
  alignas(64) std::atomic<std::uint32_t> launched_{0};
  std::thread worker_;
};

}  // namespace lb::npu
