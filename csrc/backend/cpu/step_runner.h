// Executes the steps of a CpuProgram on one thread of the team.
#pragma once

#include <cstdint>

#include "backend/cpu/program.h"

namespace lb::cpu {

// One thread's view of one step of the model. Work is handed out in small pieces: which thread computes a piece never
// changes its result. A call returns when the whole step is finished, by whichever threads.
class StepRunner {
 public:
  StepRunner(const CpuProgram& program, const LoweredGraph& graph, std::size_t first_weight, std::int64_t layer,
             WorkShares& shares, int member)
      : program_(program),
        graph_(graph),
        first_weight_(first_weight),
        layer_(layer),
        shares_(shares),
        member_(member) {}

  void operator()(const EmbedStep& step) const;
  void operator()(const NormStep& step) const;
  void operator()(const LinearStep& step) const;
  void operator()(const CacheStep& step) const;
  void operator()(const AttentionStep& step) const;
  void operator()(const GatherStep& step) const;

 private:
  // Calls f(begin, end) for pieces of `chunk` that together, over all threads, cover [0, count) once, and returns when
  // the threads have finished them all.
  template <class F>
  void share(std::int64_t count, std::int64_t chunk, F&& f) const;

  const PackedWeight& weight(int index) const;
  const std::byte* first_read_of_next(const PackedWeight& matrix, std::int64_t rows) const;
  std::byte* at(View view) const;
  const BufferSpec& spec(View view) const { return graph_.buffers[static_cast<std::size_t>(view.buffer)]; }
  std::int64_t num_rows(Rows rows) const;
  RopeRow rope_at(std::int64_t position) const;
  HeadContext context_of(const AttentionPieces::Piece& piece) const;

  const CpuProgram& program_;
  const LoweredGraph& graph_;
  const std::size_t first_weight_;
  const std::int64_t layer_;
  WorkShares& shares_;
  const int member_;
};

}  // namespace lb::cpu
