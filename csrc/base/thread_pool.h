// A fixed team of threads that runs one function at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lb {

// Whether a counter that wraps around has come as far as `target`, and if so, what was written before.
inline bool has_reached(const std::atomic<std::uint32_t>& word, std::uint32_t target) {
  return static_cast<std::int32_t>(word.load(std::memory_order_acquire) - target) >= 0;
}

// Waits until `word` has reached `target`: spins for some tens of microseconds and then parks. Whoever raises the word
// to the target must call notify_all() on it.
void wait_for(const std::atomic<std::uint32_t>& word, std::uint32_t target);

// The calling thread is member 0 of the team and works too; `num_threads - 1` more are started. One thread at a time
// may call run().
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // at least 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Calls f(member) once on every member of the team and returns when all have finished. `f` must not throw.
  template <class F>
  void run(F&& f) {
    run_job([](void* context, int member) { (*static_cast<std::remove_reference_t<F>*>(context))(member); }, &f);
  }

 private:
  using Job = void (*)(void* context, int member);

  void run_job(Job job, void* context);
  void work(int member);

  const int num_threads_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  // Each on its own cache line: they are written by different threads at the same time.
  alignas(64) std::atomic<std::uint32_t> num_started_{0};  // jobs
  alignas(64) std::atomic<std::uint32_t> num_left_{0};     // members other than 0 that have finished the job
  std::vector<std::thread> threads_;
};

// Calls f(i) for every i in [0, count) on the pool, each index once, in no fixed order. The first exception stops the
// loop and is thrown again here. For work that is long compared with a lock, such as loading.
template <class F>
void parallel_for(ThreadPool& pool, std::int64_t count, F&& f) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  pool.run([&](int) {
    try {
      for (std::int64_t i = next++; i < count; i = next++) f(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace lb
