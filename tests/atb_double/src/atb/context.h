#ifndef ATB_DOUBLE_SRC_ATB_CONTEXT_H
#define ATB_DOUBLE_SRC_ATB_CONTEXT_H

#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "atb/context.h"

namespace atb_double {

// The ring of tiling blocks is a counter here: a block is overwritten when the counter has gone once around.
class ContextImpl final : public atb::Context {
 public:
  explicit ContextImpl(uint64_t tiling_blocks);
  ~ContextImpl() override;

  atb::Status SetExecuteStream(aclrtStream stream) override;
  aclrtStream GetExecuteStream() const override;
  atb::Status SetAsyncTilingCopyStatus(bool enable) override;
  bool GetAsyncTilingCopyStatus() const override;
  atb::Status SetExecuteStreams(const std::vector<aclrtStream>& streams) override;
  std::vector<aclrtStream> GetExecuteStreams() override;
  atb::Status SetExecuteType(atb::ExecuteType type) override;
  atb::ExecuteType GetExecuteType() override;
#if ATB_DOUBLE_RELEASE >= 820
  atb::Status SetLaunchMode(atb::LaunchMode mode) override;
  atb::LaunchMode GetLaunchMode() override;
#endif

  aclrtStream stream(uint32_t id) const { return id < streams_.size() ? streams_[id] : nullptr; }
  bool captures() const { return captures_; }

  // Setup holds one of these. False when another thread is in Setup, or this thread had left Setup to another one.
  bool enter_setup();
  void leave_setup() { in_setup_ = false; }
  bool is_setup_thread();
  uint64_t take_tiling_block() { return blocks_taken_++; }
  bool tiling_block_is_intact(uint64_t block) const { return blocks_taken_ - block <= tiling_blocks_; }

  std::atomic<int> operations_set_up = 0;

 private:
  std::vector<aclrtStream> streams_;
  bool async_tiling_copy_ = false;
  bool captures_ = false;
  uint64_t tiling_blocks_;
  std::atomic<uint64_t> blocks_taken_ = 0;
  std::atomic<bool> in_setup_ = false;
  std::mutex mutex_;
  std::thread::id setup_thread_;
  std::set<std::thread::id> retired_threads_;
};

}  // namespace atb_double

#endif
