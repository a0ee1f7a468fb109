#include "backend/cpu/attention_pieces.h"

#include <algorithm>

namespace lb::cpu {

AttentionPieces::AttentionPieces(std::int64_t num_heads, const CacheLayout& cache, const ProgramOptions& options,
                                 int threads)
    : group_(num_heads / cache.num_kv_heads()),
      num_kv_heads_(cache.num_kv_heads()),
      max_split_items_(std::min(options.max_sequences * num_kv_heads_, kEnoughPerThread * threads - 1)),
      slot_floats_(ceil_div(options.max_blocks * options.block_size, std::int64_t{kTilePositions}) *
                   attention_tile_floats(group_, padded_head_dim(cache.head_dim()))),
      tiles_(static_cast<std::size_t>(max_split_items_ * slot_floats_) * sizeof(float)),
      first_piece_(static_cast<std::size_t>(options.max_sequences) + 1),
      num_rows_(static_cast<std::size_t>(options.max_sequences)),
      tiles_done_(static_cast<std::size_t>(max_split_items_)) {}

void AttentionPieces::prepare(const StepBatch& batch) {
  num_sequences_ = batch.context_len.size();
  by_tiles_ = batch.token_ids.size() == num_sequences_ && group_ <= kQueryRows &&
              static_cast<std::int64_t>(num_sequences_) * num_kv_heads_ <= max_split_items_;
  for (std::size_t s = 0; s < num_sequences_; ++s) {
    num_rows_[s] = (batch.seq_begin[s + 1] - batch.seq_begin[s]) * group_;
    const std::int64_t a_head = by_tiles_ ? ceil_div(std::int64_t{batch.context_len[s]}, std::int64_t{kTilePositions})
                                          : ceil_div(num_rows_[s], std::int64_t{kQueryRows});
    first_piece_[s + 1] = first_piece_[s] + a_head * num_kv_heads_;
  }
}

AttentionPieces::Piece AttentionPieces::operator[](std::int64_t index) const {
  const auto begin = first_piece_.begin();
  const auto after = std::upper_bound(begin, begin + static_cast<std::ptrdiff_t>(num_sequences_), index);
  Piece piece;
  piece.sequence = static_cast<std::size_t>(after - begin) - 1;
  const std::int64_t first = first_piece_[piece.sequence];
  const std::int64_t a_head = (first_piece_[piece.sequence + 1] - first) / num_kv_heads_;
  piece.kv_head = (index - first) / a_head;
  const std::int64_t in_head = (index - first) % a_head;
  const std::int64_t num_rows = num_rows_[piece.sequence];
  if (by_tiles_) {
    piece.row_end = num_rows;
    piece.tile = in_head;
    piece.num_tiles = a_head;
    piece.tiles = reinterpret_cast<float*>(const_cast<std::byte*>(tiles_.data())) +
                  static_cast<std::int64_t>(slot(piece)) * slot_floats_;
  } else {
    // The last rows see the longest context: they go first, so that no thread is left with them at the end.
    piece.row_begin = (a_head - 1 - in_head) * kQueryRows;
    piece.row_end = std::min(piece.row_begin + kQueryRows, num_rows);
  }
  return piece;
}

bool AttentionPieces::finish_tile(const Piece& piece) {
  std::atomic<std::int64_t>& done = tiles_done_[slot(piece)];
  if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < piece.num_tiles) return false;
  done.store(0, std::memory_order_relaxed);  // for the next layer, which begins when all have finished this one
  return true;
}

}  // namespace lb::cpu
