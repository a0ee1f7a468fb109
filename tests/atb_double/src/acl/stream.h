#ifndef ATB_DOUBLE_SRC_ACL_STREAM_H
#define ATB_DOUBLE_SRC_ACL_STREAM_H

// A stream is a thread that runs its tasks in order. When a task throws DeviceFault the stream is broken: it skips what
// comes after, and whoever synchronises gets the error.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "acl/acl.h"

namespace atb_double {

constexpr aclError kDeviceException = 507015;  // An AI core exception.
constexpr aclError kCaptureInProgress = 107027;

struct Task {
  std::function<void()> run;
  bool even_when_broken = false;  // Events, so that nobody waits for ever.
};

class Stream {
 public:
  Stream();
  ~Stream();
  static Stream* from(aclrtStream handle);  // nullptr unless alive.

  void enqueue(Task task);
  bool busy();
  aclError synchronize();
  static aclError synchronize_all();
  static void release_all();
  static bool any_busy();  // Under the lazy schedule: whatever is queued now may run.

  // Captured tasks do not run; they are played again by play().
  bool begin_capture();
  bool capturing();
  std::unique_ptr<std::vector<Task>> end_capture();
  void play(const std::vector<Task>& tasks);

 private:
  void loop();
  void run(const Task& task);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> queue_;
  uint64_t enqueued_ = 0;
  uint64_t released_ = 0;  // Tasks with a number below may run; used by the lazy schedule.
  uint64_t finished_ = 0;
  bool broken_ = false;
  bool closing_ = false;
  std::unique_ptr<std::vector<Task>> capture_;
  std::thread thread_;
};

class Event {
 public:
  static std::shared_ptr<Event> from(aclrtEvent handle);
  static aclrtEvent create();
  static bool destroy(aclrtEvent handle);

  void record(Stream& stream);
  void wait_on(Stream& stream);
  void synchronize();

 private:
  void wait(uint64_t target);

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t recorded_ = 0;
  uint64_t done_ = 0;
};

}  // namespace atb_double

#endif
