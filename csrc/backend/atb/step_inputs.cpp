#include "backend/atb/step_inputs.h"

#include <algorithm>
#include <utility>

#include "backend/atb/limits.h"
#include "base/memory.h"

namespace lb::npu {
namespace {

std::int64_t padded(std::int64_t count) {
  return round_up(count * static_cast<std::int64_t>(sizeof(std::int32_t)), Slab::kAlignment);
}

// What is added to the score of a token that must not be seen: e to it is 0 whatever the score was.
std::uint16_t hidden_score(DType dtype) {
  constexpr float kHidden = -10000.0F;
  return dtype == DType::kF16 ? to_f16(kHidden).bits : to_bf16(kHidden).bits;
}

}  // namespace

Phase classify(const StepBatch& batch, bool has_prefix_encoder) {
  bool whole = true;
  bool single = true;
  bool aligned = has_prefix_encoder;
  for (std::size_t s = 0; s < batch.context_len.size(); ++s) {
    const std::int32_t count = batch.seq_begin[s + 1] - batch.seq_begin[s];
    const std::int32_t cached = batch.context_len[s] - count;
    whole = whole && cached == 0;
    single = single && count == 1;
    aligned = aligned && cached % kPrefixMultiple == 0;
  }
  if (whole) return Phase::kPrefill;
  if (single) return Phase::kDecode;
  return aligned ? Phase::kPrefix : Phase::kExtend;
}

StepInputs::StepInputs(const ProgramOptions& options, Slab& slab)
    : options_(options),
      capacity_(3 * padded(options.max_tokens) + padded(options.max_logit_rows) + 2 * padded(options.max_sequences) +
                padded(options.max_sequences * options.max_blocks)),
      slab_offset_(slab.add(capacity_)) {}

void StepInputs::allocate(const Slab& slab) {
  device_ints_ = slab.at(slab_offset_);
  for (Set& set : sets_) set.ints = PinnedMemory(capacity_, "the inputs of a step");
}

std::int32_t* StepInputs::take(Feed feed, std::size_t count) {
  std::byte* host = sets_[current_].ints.data() + used_;
  places_[static_cast<std::size_t>(feed)] = {host, device_ints_ + used_};
  used_ += padded(static_cast<std::int64_t>(count));
  return reinterpret_cast<std::int32_t*>(host);
}

void StepInputs::assemble(const StepBatch& batch, Phase phase, DType dtype, const Device& device, Extents& extents) {
  current_ = 1 - current_;
  if (num_in_flight_ == 2) {
    device.synchronize("the steps before");
    num_in_flight_ = 0;
  }
  ++num_in_flight_;
  used_ = 0;
  const auto copy = [this](Feed feed, std::span<const std::int32_t> values) {
    std::ranges::copy(values, take(feed, values.size()));
  };
  copy(Feed::kTokenIds, batch.token_ids);
  copy(Feed::kPositions, batch.positions);
  copy(Feed::kSlots, batch.slots);
  copy(Feed::kLogitRows, batch.logit_rows);
  copy(Feed::kContextLens, batch.context_len);
  std::int32_t* query_lens = take(Feed::kQueryLens, batch.context_len.size());
  for (std::size_t s = 0; s < batch.context_len.size(); ++s)
    query_lens[s] = batch.seq_begin[s + 1] - batch.seq_begin[s];
  // A block that is not there is never read; its number is one that exists all the same.
  std::ranges::transform(batch.block_table, take(Feed::kBlockTables, batch.block_table.size()),
                         [](std::int32_t block) { return std::max(block, 0); });
  const auto bytes = static_cast<std::size_t>(used_);
  device.upload(device_ints_, static_cast<std::size_t>(capacity_), sets_[current_].ints.data(), bytes,
                "the inputs of a step");

  const std::int64_t context = std::ranges::max(batch.context_len);
  extents[Symbol::kTokens] = static_cast<std::int64_t>(batch.token_ids.size());
  extents[Symbol::kSequences] = static_cast<std::int64_t>(batch.context_len.size());
  extents[Symbol::kRows] = static_cast<std::int64_t>(batch.logit_rows.size());
  extents[Symbol::kContext] = context;
  if (phase == Phase::kExtend) assemble_mask(batch, dtype, device, context);
}

// One row a token: 0 for what it sees of its sequence, which starts at column 0.
void StepInputs::assemble_mask(const StepBatch& batch, DType dtype, const Device& device, std::int64_t context) {
  const auto num_tokens = static_cast<std::int64_t>(batch.token_ids.size());
  const std::int64_t bytes = num_tokens * context * 2;
  if (mask_.size() < bytes) {
    device.synchronize("the steps before");
    mask_.reset();
    mask_ = DeviceMemory(bytes, "the mask of a prompt's chunk");
    for (Set& set : sets_) {
      set.mask.reset();
      set.mask = PinnedMemory(bytes, "the mask of a prompt's chunk");
    }
  }
  auto* row = reinterpret_cast<std::uint16_t*>(sets_[current_].mask.data());
  const std::uint16_t hidden = hidden_score(dtype);
  for (const std::int32_t position : batch.positions) {
    std::fill_n(row, position + 1, std::uint16_t{0});
    std::fill(row + position + 1, row + context, hidden);
    row += context;
  }
  device.upload(mask_.data(), static_cast<std::size_t>(bytes), sets_[current_].mask.data(),
                static_cast<std::size_t>(bytes), "the mask of a prompt's chunk");
  places_[static_cast<std::size_t>(Feed::kMask)] = {nullptr, mask_.data()};
}

void StepInputs::bind(Feed feed, atb::Tensor& tensor) const {
  const Place& place = places_[static_cast<std::size_t>(feed)];
  tensor.deviceData = place.device;
  const bool is_read_by_host = feed == Feed::kQueryLens || feed == Feed::kContextLens;
  tensor.hostData = is_read_by_host ? place.host : nullptr;
}

}  // namespace lb::npu
