// How the attention of one step is cut into pieces for several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cache_layout.h"
#include "backend/cpu/kernels.h"
#include "base/memory.h"
#include "graph/graph.h"

namespace lb::cpu {

// Consecutive tokens of one sequence whose queries lie in consecutive rows.
struct QueryRun {
  std::size_t sequence = 0;
  std::int64_t first_row = 0;
  std::int64_t first_position = 0;
  std::int64_t num_tokens = 0;
};

// Pieces are blocks of query rows of one run and kv head. Where that leaves too few for the threads and each run has
// one token, they are tiles of the context instead, those of all kv heads in turn, as the cache lies; the thread that
// finishes the last one of a head merges them. Which it is never changes a result.
class AttentionPieces {
 public:
  // For steps of at most so many runs.
  AttentionPieces(std::int64_t num_heads, const CacheLayout& cache, const ProgramOptions& options,
                  std::int64_t max_runs, int threads);

  // Before a step; nobody may be at work on its pieces. Queries are those of all tokens, or of the logit rows alone.
  void prepare(const StepBatch& batch, Rows queries);

  std::int64_t count() const { return first_piece_[runs_.size()]; }

  struct Piece {
    QueryRun queries;
    std::size_t slot = 0;
    std::int64_t kv_head = 0;
    // As in AttentionArgs.
    std::int64_t row_begin = 0;
    std::int64_t row_end = 0;
    std::int64_t tile = -1;
    std::int64_t num_tiles = 0;
    float* tiles = nullptr;

    // The first position that it reads.
    std::int64_t begin() const { return tile < 0 ? 0 : tile * kTilePositions; }
  };
  Piece operator[](std::int64_t index) const;

  // Says that a piece that is a tile has been computed. True for the last one of its run and head.
  bool finish_tile(const Piece& piece);

 private:
  void add_sequences(const StepBatch& batch);
  void add_logit_rows(const StepBatch& batch);

  // So many rows and tiles need no sharing out by tiles: they keep the threads evenly busy.
  static constexpr std::int64_t kEnoughPerThread = 4;

  std::int64_t group_;  // query heads of a kv head
  std::int64_t num_kv_heads_;
  std::int64_t max_split_items_;  // runs x kv heads
  std::int64_t slot_floats_;
  Buffer tiles_;  // [slots][slot_floats_]

  // Of the step that runs.
  bool by_tiles_ = false;
  std::vector<QueryRun> runs_;
  std::vector<std::int64_t> first_piece_;              // [runs + 1]
  std::vector<std::atomic<std::int64_t>> tiles_done_;  // [slots]
};

}  // namespace lb::cpu
