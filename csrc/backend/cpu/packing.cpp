#include "backend/cpu/packing.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "base/convert.h"
#include "base/error.h"

namespace lb::cpu {
namespace {

// Panels of gate and up rows are padded per half, so their count follows the padded ffn width.
std::int64_t padded_rows(const PackedWeight& weight) {
  if (weight.packing == Packing::kGateUpPanels) return 2 * round_up(weight.rows / 2, std::int64_t{kLanes});
  return round_up(weight.rows, std::int64_t{kPanel});
}

std::int64_t packed_bytes(const PackedWeight& weight) {
  if (weight.packing == Packing::kVector) return round_up(padded_rows(weight) * 4, std::int64_t{64});
  return padded_rows(weight) / kPanel * panel_bytes(weight.dtype, weight.coded, weight.columns);
}

// Converts `count` elements in place from one type to another; the buffer is large enough for both.
void convert(DType from, DType to, std::vector<std::byte>& buffer, std::int64_t count) {
  if (from == to) return;
  std::vector<float> floats(static_cast<std::size_t>(count));
  to_floats(from, buffer.data(), count, floats.data());
  from_floats(floats.data(), count, to, buffer.data());
}

// Sixteen rows of a stored matrix, which fill a lane group.
struct RowGroup {
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;  // less than 16 at the end of the matrix, or none
};

RowGroup row_group(const PackedWeight& weight, std::int64_t group) {
  if (weight.packing == Packing::kGateUpPanels) {
    const std::int64_t half = weight.rows / 2;
    const std::int64_t first = group / 2 * kLanes;
    return {group % 2 * half + first, std::min<std::int64_t>(kLanes, half - first)};
  }
  const std::int64_t first = group * kLanes;
  return {first, std::clamp<std::int64_t>(weight.rows - first, 0, kLanes)};
}

// Packs sixteen rows into the words of their panel.
void pack_group(const StoredTensor& stored, const PackedWeight& weight, std::int64_t group, const Kernels& kernels,
                std::uint32_t* panel) {
  const RowGroup rows = row_group(weight, group);
  thread_local std::vector<std::byte> staging;
  const std::int64_t count = rows.num_rows * weight.columns;
  staging.resize(static_cast<std::size_t>(kLanes * weight.columns) * sizeof(float));
  const auto row_bytes = static_cast<std::uint64_t>(weight.columns) * size_bytes(stored.dtype());
  if (rows.num_rows > 0) {
    stored.read(static_cast<std::uint64_t>(rows.first_row) * row_bytes, staging.data(),
                static_cast<std::uint64_t>(rows.num_rows) * row_bytes);
    convert(stored.dtype(), weight.dtype, staging, count);
  }
  const std::int64_t steps = weight.columns / elements_per_step(weight.dtype);
  kernels.pack_rows(reinterpret_cast<const std::uint32_t*>(staging.data()), steps, static_cast<int>(rows.num_rows),
                    steps, panel + group % 2 * kLanes);
}

void pack_panel(const StoredTensor& stored, const PackedWeight& weight, std::int64_t panel, const Kernels& kernels,
                std::byte* target, PanelCoder& coder) {
  const std::int64_t steps = weight.columns / elements_per_step(weight.dtype);
  target += panel * panel_bytes(weight.dtype, weight.coded, weight.columns);
  thread_local Buffer plain;
  const std::size_t plain_bytes = static_cast<std::size_t>(steps * kPanel) * sizeof(std::uint32_t);
  if (weight.coded && plain.size() < plain_bytes) plain = Buffer(plain_bytes);
  auto* words = reinterpret_cast<std::uint32_t*>(weight.coded ? plain.data() : target);
  for (std::int64_t group = 2 * panel; group < 2 * panel + 2; ++group)
    pack_group(stored, weight, group, kernels, words);
  if (weight.coded) coder.code(words, steps, target);
}

void pack_vector(const StoredTensor& stored, const PackedWeight& weight, std::byte* target) {
  std::vector<std::byte> staging(stored.bytes());
  stored.read(0, staging.data(), stored.bytes());
  to_floats(stored.dtype(), staging.data(), weight.rows, reinterpret_cast<float*>(target));
}

PackedWeight describe(const PackingRequest& request, const StoredTensor& stored, std::optional<DType> weight_dtype,
                      const Kernels& kernels) {
  PackedWeight weight;
  weight.packing = request.packing;
  weight.rows = stored.shape()[0];
  weight.columns = stored.shape().size() == 2 ? stored.shape()[1] : 1;
  weight.dtype = weight_dtype.value_or(stored.dtype());
  weight.coded = request.packing != Packing::kVector && kernels.decodes && can_be_coded(weight.dtype, weight.columns);
  LB_CHECK((request.packing == Packing::kVector) == (stored.shape().size() == 1), request.name);
  LB_CHECK(request.packing == Packing::kVector || weight.columns % 2 == 0, request.name, " has ", weight.columns,
           " columns");
  return weight;
}

// A unit of parallel work: a few panels of one matrix, or one vector.
struct Task {
  std::size_t weight = 0;
  std::int64_t panel_begin = 0;
  std::int64_t panel_end = 0;
  std::int64_t bytes = 0;
};

}  // namespace

PackedWeights::PackedWeights(const std::vector<PackingRequest>& requests, const WeightLookup& lookup,
                             std::optional<DType> weight_dtype, const Kernels& kernels, ThreadPool& pool,
                             const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  constexpr std::int64_t kPanelsPerTask = 4;
  std::map<std::pair<std::string, Packing>, std::size_t> first_use;
  std::vector<const StoredTensor*> stored;
  std::vector<std::int64_t> offsets;
  std::vector<Task> tasks;
  std::int64_t total = 0;
  for (const PackingRequest& request : requests) {
    const StoredTensor& tensor = lookup(request.name);
    weights_.push_back(describe(request, tensor, weight_dtype, kernels));
    stored.push_back(&tensor);
    const PackedWeight& weight = weights_.back();
    const auto [use, is_first] = first_use.try_emplace({request.name, request.packing}, weights_.size() - 1);
    if (!is_first) {
      offsets.push_back(offsets[use->second]);
      continue;
    }
    offsets.push_back(total);
    const std::int64_t panels = weight.packing == Packing::kVector ? 1 : padded_rows(weight) / kPanel;
    for (std::int64_t begin = 0; begin < panels; begin += kPanelsPerTask) {
      const std::int64_t end = std::min(begin + kPanelsPerTask, panels);
      tasks.push_back({weights_.size() - 1, begin, end, packed_bytes(weight) * (end - begin) / panels});
    }
    total += packed_bytes(weight);
  }
  buffer_ = Buffer(static_cast<std::size_t>(total));
  for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i].data = buffer_.data() + offsets[i];

  coders_.reserve(tasks.size());
  for (std::size_t i = 0; i < tasks.size(); ++i) coders_.emplace_back(kernels);
  std::atomic<std::int64_t> done{0};
  const std::thread::id caller = std::this_thread::get_id();
  parallel_for(pool, static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    const PackedWeight& weight = weights_[task.weight];
    std::byte* target = buffer_.data() + offsets[task.weight];
    if (weight.packing == Packing::kVector) {
      pack_vector(*stored[task.weight], weight, target);
    } else {
      for (std::int64_t panel = task.panel_begin; panel < task.panel_end; ++panel)
        pack_panel(*stored[task.weight], weight, panel, kernels, target, coders_[static_cast<std::size_t>(i)]);
    }
    const std::int64_t now = done += task.bytes;
    if (on_progress && std::this_thread::get_id() == caller) on_progress(now, total);
  });
  if (on_progress) on_progress(total, total);
}

std::int64_t PackedWeights::bytes() const {
  auto bytes = static_cast<std::int64_t>(buffer_.size());
  for (const PanelCoder& coder : coders_) bytes += coder.bytes();
  return bytes;
}

void unpack_row(const PackedWeight& weight, std::int64_t row, float* target) {
  const std::int64_t steps = weight.columns / elements_per_step(weight.dtype);
  const std::byte* panel = weight.data + row / kPanel * panel_bytes(weight.dtype, weight.coded, weight.columns);
  if (weight.coded) {
    decode_row(*reinterpret_cast<const CodedPanel*>(panel), static_cast<int>(row % kPanel), steps, target);
    return;
  }
  const auto* words = reinterpret_cast<const std::uint32_t*>(panel) + row % kPanel;
  for (std::int64_t step = 0; step < steps; ++step) {
    const std::uint32_t word = words[step * kPanel];
    const auto low = static_cast<std::uint16_t>(word);
    const auto high = static_cast<std::uint16_t>(word >> 16);
    switch (weight.dtype) {
      case DType::kF32: target[step] = std::bit_cast<float>(word); break;
      case DType::kF16:
        target[2 * step] = to_float(F16{low});
        target[2 * step + 1] = to_float(F16{high});
        break;
      case DType::kBF16:
        target[2 * step] = to_float(Bf16{low});
        target[2 * step + 1] = to_float(Bf16{high});
        break;
    }
  }
}

}  // namespace lb::cpu
