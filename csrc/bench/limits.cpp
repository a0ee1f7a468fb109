#include "bench/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "base/error.h"

namespace lb::bench {
namespace {

using Clock = std::chrono::steady_clock;

// The unit that any number of streams divides into whole groups of cache lines. The odd size keeps streams from
// starting at the same place of a cache set.
constexpr std::size_t kUnit = 8 * 256;
constexpr int kReadings = 3;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Keeps the optimiser from dropping a computation.
std::atomic<float> sink{0};

}  // namespace

double Speeds::seconds(const Work& work) const { return std::max(work.bytes / bytes, work.flops / flops); }

double Limit::best() const { return readings.empty() ? 0 : *std::max_element(readings.begin(), readings.end()); }

Limits::Limits(ThreadPool& pool, const cpu::Kernels& kernels, cpu::Operand operand, std::size_t buffer_bytes)
    : pool_(pool),
      probe_(cpu::probe_of(kernels)),
      multiplication_(operand == cpu::Operand::kBf16 ? probe_.bf16_dot : probe_.f32_fma),
      buffer_(buffer_bytes) {
  LB_CHECK(multiplication_.run != nullptr, kernels.name);
  const auto num_threads = static_cast<std::size_t>(pool.size());
  bytes_per_thread_ = buffer_bytes / num_threads / kUnit * kUnit;
  if (bytes_per_thread_ % (2 * kUnit) == 0) bytes_per_thread_ -= kUnit;
  LB_CHECK(bytes_per_thread_ > 0, buffer_bytes);
  pool.run([this](int member) {  // first touch by the thread that reads
    std::byte* part = buffer_.data() + static_cast<std::size_t>(member) * bytes_per_thread_;
    std::fill_n(reinterpret_cast<float*>(part), bytes_per_thread_ / sizeof(float), 1.0F);
  });
  for (const int streams : {1, 2, 4, 8}) {
    for (const std::size_t ahead : {std::size_t{0}, std::size_t{1024}, std::size_t{4096}, std::size_t{8192}}) {
      const double best = bandwidth_.best();
      for (int reading = 0; reading < kReadings; ++reading)
        bandwidth_.readings.push_back(read_once(streams, ahead, 0, bytes_per_thread_));
      if (bandwidth_.best() == best) continue;
      streams_ = streams;
      ahead_ = ahead;
    }
  }
  bandwidth_.probe =
      cat(streams_, streams_ == 1 ? " stream" : " streams", " a thread, prefetch ", ahead_, " bytes ahead");
  arithmetic_.probe = multiplication_.instruction;
  for (int reading = 0; reading < kReadings; ++reading) arithmetic_.readings.push_back(multiply_once());
}

void Limits::measure_again() {
  for (int reading = 0; reading < kReadings; ++reading) {
    bandwidth_.readings.push_back(read_once(streams_, ahead_, 0, bytes_per_thread_));
    arithmetic_.readings.push_back(multiply_once());
  }
}

double Limits::read_beside() {
  const std::size_t bytes = std::min(bytes_per_thread_, (std::size_t{64} << 20) / kUnit * kUnit);
  if (beside_at_ + bytes > bytes_per_thread_) beside_at_ = 0;
  bandwidth_.readings.push_back(read_once(streams_, ahead_, beside_at_, bytes));
  beside_at_ += bytes;
  return bandwidth_.readings.back();
}

double Limits::read_once(int streams, std::size_t ahead, std::size_t begin, std::size_t bytes) const {
  const Clock::time_point start = Clock::now();
  pool_.run([&](int member) {
    const std::byte* part = buffer_.data() + static_cast<std::size_t>(member) * bytes_per_thread_;
    sink = probe_.read(part + begin, bytes, streams, ahead);
  });
  return static_cast<double>(bytes) * pool_.size() / seconds_since(start);
}

double Limits::multiply_once() const {
  // Twice as many rounds until they take long enough for a core to reach its clock, and no longer, to find a quiet
  // moment.
  constexpr double kSeconds = 10e-3;
  for (std::int64_t rounds = 1024;; rounds *= 2) {
    const Clock::time_point start = Clock::now();
    pool_.run([&](int) { sink = multiplication_.run(rounds); });
    const double seconds = seconds_since(start);
    if (seconds < kSeconds) continue;
    return static_cast<double>(rounds) * static_cast<double>(multiplication_.flops) * pool_.size() / seconds;
  }
}

}  // namespace lb::bench
