#include "stream.h"

#include <algorithm>
#include <map>
#include <set>

#include "state.h"

namespace atb_double {
namespace {

// Handles that are alive; never destroyed, like all that other threads may reach while the process ends.
struct Registry {
  std::mutex mutex;
  std::set<Stream*> streams;
  std::map<Event*, std::shared_ptr<Event>> events;
};

Registry& registry() {
  static Registry* made = new Registry;
  return *made;
}

}  // namespace

Stream::Stream() : thread_([this] { loop(); }) {
  const std::lock_guard lock(registry().mutex);
  registry().streams.insert(this);
  ++live(Live::kStream);
}

Stream::~Stream() {
  {
    const std::lock_guard lock(registry().mutex);
    registry().streams.erase(this);
  }
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    released_ = enqueued_;
  }
  changed_.notify_all();
  thread_.join();
  --live(Live::kStream);
}

Stream* Stream::from(aclrtStream handle) {
  auto* stream = static_cast<Stream*>(handle);
  const std::lock_guard lock(registry().mutex);
  return registry().streams.count(stream) != 0 ? stream : nullptr;
}

void Stream::enqueue(Task task) {
  {
    const std::lock_guard lock(mutex_);
    if (capture_ != nullptr) {
      capture_->push_back(std::move(task));
      return;
    }
    queue_.push_back(std::move(task));
    ++enqueued_;
  }
  changed_.notify_all();
}

void Stream::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return queue_.empty() ? closing_ : !settings().lazy || finished_ < released_; });
    if (queue_.empty()) {
      return;
    }
    const Task task = std::move(queue_.front());
    queue_.pop_front();
    const bool skip = broken_ && !task.even_when_broken;
    lock.unlock();
    if (!skip) {
      run(task);
    }
    lock.lock();
    ++finished_;
    changed_.notify_all();
  }
}

void Stream::run(const Task& task) {
  try {
    task.run();
  } catch (const DeviceFault& fault) {
    const std::string what = fault.what();
    log_line(what.starts_with("INJECTED") ? what : "ERROR device exception: " + what);
    const std::lock_guard lock(mutex_);
    broken_ = true;
  }
}

bool Stream::busy() {
  const std::lock_guard lock(mutex_);
  return finished_ < enqueued_;
}

bool Stream::any_busy() {
  const std::lock_guard lock(registry().mutex);
  return std::any_of(registry().streams.begin(), registry().streams.end(), [](Stream* each) { return each->busy(); });
}

void Stream::release_all() {
  if (!settings().lazy) {
    return;
  }
  const std::lock_guard lock(registry().mutex);
  for (Stream* stream : registry().streams) {
    {
      const std::lock_guard inner(stream->mutex_);
      stream->released_ = stream->enqueued_;
    }
    stream->changed_.notify_all();
  }
}

aclError Stream::synchronize() {
  release_all();
  std::unique_lock lock(mutex_);
  if (capture_ != nullptr) {
    log_error("a stream that is being captured cannot be synchronised");
    return kCaptureInProgress;
  }
  const uint64_t target = enqueued_;
  changed_.wait(lock, [&] { return finished_ >= target; });
  return broken_ ? kDeviceException : ACL_SUCCESS;
}

aclError Stream::synchronize_all() {
  std::set<Stream*> streams;
  {
    const std::lock_guard lock(registry().mutex);
    streams = registry().streams;
  }
  aclError status = ACL_SUCCESS;
  for (Stream* stream : streams) {
    status = std::max(status, stream->synchronize());
  }
  return status;
}

bool Stream::begin_capture() {
  const std::lock_guard lock(mutex_);
  if (capture_ != nullptr) {
    return false;
  }
  capture_ = std::make_unique<std::vector<Task>>();
  return true;
}

bool Stream::capturing() {
  const std::lock_guard lock(mutex_);
  return capture_ != nullptr;
}

std::unique_ptr<std::vector<Task>> Stream::end_capture() {
  const std::lock_guard lock(mutex_);
  return std::move(capture_);
}

void Stream::play(const std::vector<Task>& tasks) {
  for (const Task& task : tasks) {
    enqueue(task);
  }
}

std::shared_ptr<Event> Event::from(aclrtEvent handle) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().events.find(static_cast<Event*>(handle));
  return found == registry().events.end() ? nullptr : found->second;
}

aclrtEvent Event::create() {
  auto event = std::make_shared<Event>();
  const std::lock_guard lock(registry().mutex);
  registry().events.emplace(event.get(), event);
  ++live(Live::kEvent);
  return event.get();
}

bool Event::destroy(aclrtEvent handle) {
  const std::lock_guard lock(registry().mutex);
  if (registry().events.erase(static_cast<Event*>(handle)) == 0) {
    return false;
  }
  --live(Live::kEvent);
  return true;
}

void Event::record(Stream& stream) {
  const std::lock_guard lock(mutex_);
  const uint64_t target = ++recorded_;
  if (!settings().executes) {
    done_ = target;
    return;
  }
  const auto mark = [self = from(this), target] {
    {
      const std::lock_guard inner(self->mutex_);
      self->done_ = std::max(self->done_, target);
    }
    self->changed_.notify_all();
  };
  stream.enqueue({mark, /*even_when_broken=*/true});
}

void Event::wait_on(Stream& stream) {
  if (!settings().executes) {
    return;
  }
  const std::lock_guard lock(mutex_);
  stream.enqueue({[self = from(this), target = recorded_] { self->wait(target); }, /*even_when_broken=*/true});
}

void Event::synchronize() {
  Stream::release_all();
  uint64_t target = 0;
  {
    const std::lock_guard lock(mutex_);
    target = recorded_;
  }
  wait(target);
}

void Event::wait(uint64_t target) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ >= target; });
}

}  // namespace atb_double
