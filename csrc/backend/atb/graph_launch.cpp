#include "backend/atb/graph_launch.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace lb::npu {
namespace {

constexpr const char* kVariable = "LLM_BOOST_ATB_GRAPH_LAUNCH";

std::span<const std::int32_t> append(std::vector<std::int32_t>& out, std::span<const std::int32_t> values,
                                     std::size_t size, std::int32_t filler) {
  std::fill(std::ranges::copy(values, out.begin()).out, out.begin() + static_cast<std::ptrdiff_t>(size), filler);
  return std::span(out).first(size);
}

}  // namespace

std::vector<std::int64_t> graph_launch_sizes(const ProgramOptions& options) {
  std::vector<std::int64_t> sizes;
  const char* text = std::getenv(kVariable);
  if (text == nullptr || *text == '\0') return sizes;
  const std::int64_t most = std::min({options.max_sequences, options.max_tokens, options.max_logit_rows});
  std::string_view rest(text);
  while (true) {
    std::int64_t size = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), size);
    const auto used = static_cast<std::size_t>(end - rest.data());
    const bool ends = used == rest.size();
    if (error != std::errc() || size < 1 || size > most || (!ends && rest[used] != ',')) {
      throw ConfigError(cat("environment variable ", kVariable, " is '", text,
                            "', expected numbers of sequences with commas between them, each from 1 to ", most,
                            ", which max_num_seqs and max_num_batched_tokens allow"));
    }
    sizes.push_back(size);
    if (ends) break;
    rest.remove_prefix(used + 1);
  }
  std::ranges::sort(sizes);
  sizes.erase(std::ranges::unique(sizes).begin(), sizes.end());
  return sizes;
}

PaddedStep::PaddedStep(const ProgramOptions& options, std::int64_t spare_block)
    : max_blocks_(static_cast<std::size_t>(options.max_blocks)),
      spare_slot_(static_cast<std::int32_t>(spare_block * options.block_size)),
      spare_block_(static_cast<std::int32_t>(spare_block)) {
  const auto most = static_cast<std::size_t>(options.max_sequences);
  for (auto* list : {&token_ids_, &positions_, &slots_, &context_len_}) list->resize(most);
  block_table_.resize(most * max_blocks_);
  for (std::size_t i = 0; i <= most; ++i) seq_begin_.push_back(static_cast<std::int32_t>(i));
  rows_.assign(seq_begin_.begin(), seq_begin_.end() - 1);
}

bool PaddedStep::fits(const StepBatch& batch) {
  if (batch.logit_rows.size() != batch.context_len.size()) return false;
  for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
    if (batch.logit_rows[i] != static_cast<std::int32_t>(i)) return false;
  }
  return batch.token_ids.size() == batch.context_len.size();
}

StepBatch PaddedStep::pad(const StepBatch& batch, std::int64_t size) {
  const auto count = static_cast<std::size_t>(size);
  return {append(token_ids_, batch.token_ids, count, 0),
          append(positions_, batch.positions, count, 0),
          append(slots_, batch.slots, count, spare_slot_),
          std::span(seq_begin_).first(count + 1),
          append(context_len_, batch.context_len, count, 1),
          append(block_table_, batch.block_table, count * max_blocks_, spare_block_),
          std::span(rows_).first(count)};
}

}  // namespace lb::npu
