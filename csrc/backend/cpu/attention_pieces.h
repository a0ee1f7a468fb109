// How the attention of one step is cut into pieces for several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cache_layout.h"
#include "backend/cpu/kernels.h"
#include "base/memory.h"

namespace lb::cpu {

// Pieces are blocks of query rows of one sequence and kv head. Where that leaves too few for the threads and each
// sequence has one token, they are tiles of the context instead; the thread that finishes the last one merges them.
// Which it is never changes a result.
class AttentionPieces {
 public:
  AttentionPieces(std::int64_t num_heads, const CacheLayout& cache, const ProgramOptions& options, int threads);

  // Before a step; nobody may be at work on its pieces.
  void prepare(const StepBatch& batch);

  std::int64_t count() const { return first_piece_[num_sequences_]; }

  struct Piece {
    std::size_t sequence = 0;
    std::int64_t kv_head = 0;
    // As in AttentionArgs.
    std::int64_t row_begin = 0;
    std::int64_t row_end = 0;
    std::int64_t tile = -1;
    std::int64_t num_tiles = 0;
    float* tiles = nullptr;
  };
  Piece operator[](std::int64_t index) const;

  // Says that a piece that is a tile has been computed. True for the last one of its sequence and head.
  bool finish_tile(const Piece& piece);

 private:
  // So many rows and tiles need no sharing out by tiles: they keep the threads evenly busy.
  static constexpr std::int64_t kEnoughPerThread = 4;

  std::size_t slot(const Piece& piece) const {
    return piece.sequence * static_cast<std::size_t>(num_kv_heads_) + static_cast<std::size_t>(piece.kv_head);
  }

  std::int64_t group_;  // query heads of a kv head
  std::int64_t num_kv_heads_;
  std::int64_t max_split_items_;  // sequences x kv heads
  std::int64_t slot_floats_;
  Buffer tiles_;  // [slots][slot_floats_]

  // Of the step that runs.
  bool by_tiles_ = false;
  std::size_t num_sequences_ = 0;
  std::vector<std::int64_t> first_piece_;              // [S + 1]
  std::vector<std::int64_t> num_rows_;                 // [S] query rows of a kv head
  std::vector<std::atomic<std::int64_t>> tiles_done_;  // [slots]
};

}  // namespace lb::cpu
