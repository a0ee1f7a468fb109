#include "base/thread_pool.h"

#include "base/error.h"

namespace lb {
namespace {

// About 60 microseconds at 60 cycles a pause: longer than most waits within a step and than the gap between two steps
// of a decode loop, shorter than what a core that has nothing to do should burn.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void wait_for(const std::atomic<std::uint32_t>& word, std::uint32_t target) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (has_reached(word, target)) return;
    pause();
  }
  while (true) {
    const std::uint32_t value = word.load(std::memory_order_acquire);
    if (has_reached(word, target)) return;
    word.wait(value, std::memory_order_acquire);
  }
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  LB_CHECK(num_threads >= 1, num_threads);
  threads_.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int member = 1; member < num_threads; ++member) threads_.emplace_back([this, member] { work(member); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  num_started_.fetch_add(1, std::memory_order_release);
  num_started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_job(Job job, void* context) {
  job_ = job;
  context_ = context;
  num_left_.store(0, std::memory_order_relaxed);
  num_started_.fetch_add(1, std::memory_order_release);
  num_started_.notify_all();
  job(context, 0);
  wait_for(num_left_, static_cast<std::uint32_t>(num_threads_ - 1));
}

void ThreadPool::work(int member) {
  for (std::uint32_t job = 1;; ++job) {
    wait_for(num_started_, job);
    if (stopping_) return;
    job_(context_, member);
    if (num_left_.fetch_add(1, std::memory_order_acq_rel) + 2 == static_cast<std::uint32_t>(num_threads_))
      num_left_.notify_all();
  }
}

}  // namespace lb
