#include "backend/cpu/attention_pieces.h"

#include <algorithm>

namespace lb::cpu {

AttentionPieces::AttentionPieces(std::int64_t num_heads, const CacheLayout& cache, const ProgramOptions& options,
                                 std::int64_t max_runs, int threads)
    : group_(num_heads / cache.num_kv_heads()),
      num_kv_heads_(cache.num_kv_heads()),
      max_split_items_(std::min(max_runs * num_kv_heads_, kEnoughPerThread * threads - 1)),
      slot_floats_(ceil_div(options.max_blocks * options.block_size, std::int64_t{kTilePositions}) *
                   attention_tile_floats(group_, padded_head_dim(cache.head_dim()))),
      tiles_(static_cast<std::size_t>(max_split_items_ * slot_floats_) * sizeof(float)),
      first_piece_(static_cast<std::size_t>(max_runs) + 1),
      tiles_done_(static_cast<std::size_t>(max_split_items_)) {
  runs_.reserve(static_cast<std::size_t>(max_runs));
}

void AttentionPieces::prepare(const StepBatch& batch, Rows queries) {
  runs_.clear();
  if (queries == Rows::kTokens)
    add_sequences(batch);
  else
    add_logit_rows(batch);
  by_tiles_ = group_ <= kQueryRows && std::ssize(runs_) * num_kv_heads_ <= max_split_items_ &&
              std::ranges::all_of(runs_, [](const QueryRun& run) { return run.num_tokens == 1; });
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const std::int64_t context_len = batch.context_len[runs_[i].sequence];
    const std::int64_t a_head = by_tiles_ ? ceil_div(context_len, std::int64_t{kTilePositions})
                                          : ceil_div(runs_[i].num_tokens * group_, std::int64_t{kQueryRows});
    first_piece_[i + 1] = first_piece_[i] + a_head * num_kv_heads_;
  }
}

void AttentionPieces::add_sequences(const StepBatch& batch) {
  for (std::size_t s = 0; s < batch.context_len.size(); ++s) {
    const std::int64_t begin = batch.seq_begin[s];
    const std::int64_t num_tokens = batch.seq_begin[s + 1] - begin;
    runs_.push_back({s, begin, batch.context_len[s] - num_tokens, num_tokens});
  }
}

void AttentionPieces::add_logit_rows(const StepBatch& batch) {
  std::size_t sequence = 0;
  for (std::int64_t row = 0; const std::int32_t token : batch.logit_rows) {
    const bool continues = row > 0 && token == batch.logit_rows[static_cast<std::size_t>(row) - 1] + 1 &&
                           token < batch.seq_begin[sequence + 1];
    while (token >= batch.seq_begin[sequence + 1]) ++sequence;
    if (continues)
      ++runs_.back().num_tokens;
    else
      runs_.push_back({sequence, row, batch.context_len[sequence] - (batch.seq_begin[sequence + 1] - token), 1});
    ++row;
  }
}

AttentionPieces::Piece AttentionPieces::operator[](std::int64_t index) const {
  const auto begin = first_piece_.begin();
  const auto after = std::upper_bound(begin, begin + std::ssize(runs_), index);
  const auto run = static_cast<std::size_t>(after - begin) - 1;
  const std::int64_t first = first_piece_[run];
  const std::int64_t a_head = (first_piece_[run + 1] - first) / num_kv_heads_;
  Piece piece;
  piece.queries = runs_[run];
  const std::int64_t num_rows = piece.queries.num_tokens * group_;
  if (by_tiles_) {
    piece.kv_head = (index - first) % num_kv_heads_;
    const std::int64_t slot = static_cast<std::int64_t>(run) * num_kv_heads_ + piece.kv_head;
    piece.row_end = num_rows;
    piece.tile = (index - first) / num_kv_heads_;
    piece.num_tiles = a_head;
    piece.slot = static_cast<std::size_t>(slot);
    piece.tiles = reinterpret_cast<float*>(const_cast<std::byte*>(tiles_.data())) + slot * slot_floats_;
  } else {
    piece.kv_head = (index - first) / a_head;
    // The last rows see the longest context: they go first, so that no thread is left with them at the end.
    piece.row_begin = (a_head - 1 - (index - first) % a_head) * kQueryRows;
    piece.row_end = std::min(piece.row_begin + kQueryRows, num_rows);
  }
  return piece;
}

bool AttentionPieces::finish_tile(const Piece& piece) {
  std::atomic<std::int64_t>& done = tiles_done_[piece.slot];
  if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < piece.num_tiles) return false;
  done.store(0, std::memory_order_relaxed);  // for the next layer, which begins when all have finished this one
  return true;
}

}  // namespace lb::cpu
