// The machine's limits, measured in the same run as the results that are compared with them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cpu/probe.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "bench/floor.h"

namespace lb::bench {

// Readings of one limit, per second. Machines are shared and drift, so a limit is the best of its readings: nothing can
// make a probe faster than the machine.
struct Limit {
  std::string probe;  // what was run: "4 streams, prefetch 4096", "vdpbf16ps zmm"
  std::vector<double> readings;

  double best() const;
};

// What the machine did, or can do, in a second.
struct Speeds {
  double bytes = 0;
  double flops = 0;

  // The least time in which it can do `work`.
  double seconds(const Work& work) const;
  bool bandwidth_bound(const Work& work) const { return work.bytes / bytes >= work.flops / flops; }
};

// Measures with all threads of a team. `operand` says which multiplication the kernels use.
class Limits {
 public:
  Limits(ThreadPool& pool, const cpu::Kernels& kernels, cpu::Operand operand, std::size_t buffer_bytes);

  // Reads and multiplies once more, with the settings that were best at first. Called between workloads, so that a
  // quiet minute that helps one of them helps the limits too.
  void measure_again();

  // A short reading of the bandwidth, which drifts most: what runs just before and after it is compared with it. Each
  // reads memory that the last ones did not, so that nothing of it is in a cache.
  double read_beside();

  const Limit& bandwidth() const { return bandwidth_; }    // bytes
  const Limit& arithmetic() const { return arithmetic_; }  // flops

  Speeds best() const { return {bandwidth_.best(), arithmetic_.best()}; }

 private:
  // Of each thread's part of the buffer.
  double read_once(int streams, std::size_t ahead, std::size_t begin, std::size_t bytes) const;
  double multiply_once() const;

  ThreadPool& pool_;
  const cpu::Probe& probe_;
  const cpu::ArithmeticProbe& multiplication_;
  Buffer buffer_;
  std::size_t bytes_per_thread_ = 0;
  std::size_t beside_at_ = 0;  // where the next read_beside() begins
  int streams_ = 1;
  std::size_t ahead_ = 0;
  Limit bandwidth_;
  Limit arithmetic_;
};

}  // namespace lb::bench
