#include <string>

#include "backend/backend.h"
#include "base/error.h"

namespace lb {
namespace {

template <class... Args>
void require(bool holds, const Args&... message) {
  if (!holds) throw RequestError(cat("step batch: ", message...));
}

std::int64_t ssize(std::span<const std::int32_t> values) { return static_cast<std::int64_t>(values.size()); }

void check_sizes(const StepBatch& batch, const ProgramOptions& options) {
  const std::int64_t num_tokens = ssize(batch.token_ids);
  const std::int64_t num_sequences = ssize(batch.context_len);
  require(num_tokens >= 1 && num_tokens <= options.max_tokens, "token_ids has ", num_tokens, " tokens, expected 1 to ",
          options.max_tokens);
  require(num_sequences >= 1 && num_sequences <= options.max_sequences, "context_len has ", num_sequences,
          " sequences, expected 1 to ", options.max_sequences);
  require(ssize(batch.positions) == num_tokens, "positions has ", batch.positions.size(), " elements, token_ids has ",
          num_tokens);
  require(ssize(batch.slots) == num_tokens, "slots has ", batch.slots.size(), " elements, token_ids has ", num_tokens);
  require(ssize(batch.seq_begin) == num_sequences + 1, "seq_begin has ", batch.seq_begin.size(), " elements, expected ",
          num_sequences + 1, " (one more than context_len)");
  require(ssize(batch.block_table) == num_sequences * options.max_blocks, "block_table has ", batch.block_table.size(),
          " elements, expected ", num_sequences, " sequences x ", options.max_blocks, " blocks");
  require(ssize(batch.logit_rows) <= options.max_logit_rows, "logit_rows has ", batch.logit_rows.size(),
          " elements, expected at most ", options.max_logit_rows);
  require(batch.seq_begin.front() == 0 && batch.seq_begin.back() == num_tokens, "seq_begin runs from ",
          batch.seq_begin.front(), " to ", batch.seq_begin.back(), ", expected 0 to ", num_tokens);
  for (std::size_t s = 0; s < batch.context_len.size(); ++s) {
    require(batch.seq_begin[s] < batch.seq_begin[s + 1], "seq_begin goes from ", batch.seq_begin[s], " to ",
            batch.seq_begin[s + 1], ", expected at least one token for sequence ", s);
  }
}

// The tokens of sequence `s` end its context, are consecutive, and lie where the block table says.
void check_sequence(const StepBatch& batch, std::size_t s, const ProgramOptions& options, std::int64_t max_positions) {
  const std::int64_t begin = batch.seq_begin[s];
  const std::int64_t end = batch.seq_begin[s + 1];
  const std::int64_t context = batch.context_len[s];
  require(context >= end - begin && context <= max_positions, "context_len[", s, "] is ", context, ", expected ",
          end - begin, " to ", max_positions);
  const std::int64_t num_blocks = (context + options.block_size - 1) / options.block_size;
  require(num_blocks <= options.max_blocks, "sequence ", s, " needs ", num_blocks, " blocks, its table has ",
          options.max_blocks);
  const auto table =
      batch.block_table.subspan(s * static_cast<std::size_t>(options.max_blocks), static_cast<std::size_t>(num_blocks));
  for (std::size_t i = 0; i < table.size(); ++i) {
    require(table[i] >= 0 && table[i] < options.num_blocks, "block_table[", s, "][", i, "] is ", table[i],
            ", expected 0 to ", options.num_blocks - 1);
  }
  for (std::int64_t t = begin; t < end; ++t) {
    const auto token = static_cast<std::size_t>(t);
    const std::int64_t position = context - end + t;
    require(batch.positions[token] == position, "positions[", t, "] is ", batch.positions[token], ", expected ",
            position, " (the tokens of sequence ", s, " end its context of ", context, ")");
    const std::int64_t slot = table[static_cast<std::size_t>(position / options.block_size)] * options.block_size +
                              position % options.block_size;
    require(batch.slots[token] == slot, "slots[", t, "] is ", batch.slots[token], ", but the block table of sequence ",
            s, " puts position ", position, " at slot ", slot);
  }
}

}  // namespace

void check_batch(const StepBatch& batch, const ProgramOptions& options, std::int64_t vocab_size,
                 std::int64_t max_positions) {
  check_sizes(batch, options);
  for (std::size_t t = 0; t < batch.token_ids.size(); ++t) {
    require(batch.token_ids[t] >= 0 && batch.token_ids[t] < vocab_size, "token_ids[", t, "] is ", batch.token_ids[t],
            ", expected 0 to ", vocab_size - 1);
  }
  for (std::size_t s = 0; s < batch.context_len.size(); ++s) check_sequence(batch, s, options, max_positions);
  std::int64_t previous = -1;
  for (const std::int32_t row : batch.logit_rows) {
    require(row > previous && row < ssize(batch.token_ids), "logit_rows must ascend within 0 to ",
            batch.token_ids.size() - 1, ", found ", row, " after ", previous);
    previous = row;
  }
}

}  // namespace lb
