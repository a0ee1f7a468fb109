#include "kernel_calls.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <utility>

#include "backend/cpu/cache_layout.h"
#include "backend/cpu/panel_coder.h"
#include "base/memory.h"

namespace lb::testing {

using namespace lb::cpu;

namespace {

Operand operand_of(const std::string& name) {
  if (name == "bf16") return Operand::kBf16;
  return name == "f32" ? Operand::kF32 : Operand::kF32Rounded;
}

// A 64-byte aligned buffer that starts `misalignment` bytes later.
class Aligned {
 public:
  explicit Aligned(std::int64_t bytes, std::int64_t misalignment = 0)
      : buffer_(static_cast<std::size_t>(bytes) + 4096), offset_(misalignment) {}
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(buffer_.data() + offset_);
  }

 private:
  Buffer buffer_;
  std::int64_t offset_;
};

void store_operand(Operand operand, std::byte* base, std::int64_t index, float x) {
  if (operand == Operand::kBf16) {
    reinterpret_cast<Bf16*>(base)[index] = to_bf16(x);
  } else {
    reinterpret_cast<float*>(base)[index] = operand == Operand::kF32 ? x : to_float(to_bf16(x));
  }
}

float load_operand(Operand operand, const std::byte* base, std::int64_t index) {
  return operand == Operand::kBf16 ? to_float(reinterpret_cast<const Bf16*>(base)[index])
                                   : reinterpret_cast<const float*>(base)[index];
}

void store_element(DType dtype, std::byte* base, std::int64_t index, float x) {
  switch (dtype) {
    case DType::kF32: reinterpret_cast<float*>(base)[index] = x; break;
    case DType::kF16: reinterpret_cast<F16*>(base)[index] = to_f16(x); break;
    case DType::kBF16: reinterpret_cast<Bf16*>(base)[index] = to_bf16(x); break;
  }
}

DType stored_dtype(const LinearCall& call) {
  return call.dtype == "coded" ? DType::kBF16 : parse_dtype(call.dtype, "dtype");
}

// Rows of `weight` that fill a lane group, in storage type, packed into `panels`.
void pack(const Kernels& kernels, const Array& weight, DType dtype, bool gate_up, std::uint32_t* panels) {
  const std::int64_t rows = weight.shape[0];
  const std::int64_t columns = weight.shape[1];
  const std::int64_t steps = columns / elements_per_step(dtype);
  const std::int64_t half = rows / 2;
  const std::int64_t groups =
      gate_up ? 2 * ceil_div(half, std::int64_t{kLanes}) : 2 * ceil_div(rows, std::int64_t{kPanel});
  std::vector<std::byte> staging(static_cast<std::size_t>(kLanes * columns) * 4);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = gate_up ? group % 2 * half + group / 2 * kLanes : group * kLanes;
    const std::int64_t end = gate_up ? (group % 2 + 1) * half : rows;
    const std::int64_t valid = std::clamp<std::int64_t>(end - first, 0, kLanes);
    for (std::int64_t r = 0; r < valid; ++r) {
      for (std::int64_t c = 0; c < columns; ++c)
        store_element(dtype, staging.data(), r * columns + c, *weight.at(first + r, c));
    }
    kernels.pack_rows(reinterpret_cast<std::uint32_t*>(staging.data()), steps, static_cast<int>(valid), steps,
                      panels + group / 2 * steps * kPanel + group % 2 * kLanes);
  }
}

// The same panels coded, if they can be.
class CodedPanels {
 public:
  CodedPanels(const Kernels& kernels, const std::uint32_t* words, std::int64_t panels, std::int64_t in_columns)
      : coder_(kernels), stride_(panel_bytes(DType::kBF16, true, in_columns)), memory_(panels * stride_) {
    const std::int64_t steps = in_columns / 2;
    for (std::int64_t panel = 0; panel < panels; ++panel)
      coder_.code(words + panel * steps * kPanel, steps, memory_.as<std::byte>() + panel * stride_);
  }
  const std::byte* data() { return memory_.as<std::byte>(); }
  const CodedPanel& panel(std::int64_t index) { return *reinterpret_cast<const CodedPanel*>(data() + index * stride_); }

 private:
  PanelCoder coder_;
  std::int64_t stride_;
  Aligned memory_;
};

}  // namespace

Array Array::zeros(std::vector<std::int64_t> shape) {
  std::size_t size = 1;
  for (const std::int64_t extent : shape) size *= static_cast<std::size_t>(extent);
  return {std::move(shape), std::vector<float>(size)};
}

Array linear(const Kernels& kernels, const LinearCall& call) {
  const DType dtype = stored_dtype(call);
  const Operand operand = operand_of(call.operand);
  const bool gate_up = call.epilogue == "swiglu";
  const std::int64_t rows = call.x.shape[0];
  const std::int64_t in = call.x.shape[1];
  const std::int64_t out_columns = gate_up ? call.weight.shape[0] / 2 : call.weight.shape[0];
  const std::int64_t panels = ceil_div(out_columns, std::int64_t{gate_up ? kLanes : kPanel});

  Aligned packed(panels * kPanel * in * 4);
  pack(kernels, call.weight, dtype, gate_up, packed.as<std::uint32_t>());
  const bool coded = call.dtype == "coded" && can_be_coded(dtype, in);
  CodedPanels coded_panels(kernels, packed.as<std::uint32_t>(), coded ? panels : 0, in);
  Aligned lhs(rows * (in + 2) * 4, call.misalignment);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < in; ++c)
      store_operand(operand, lhs.as<std::byte>(), r * (in + 2) + c, *call.x.at(r, c));
  }
  Aligned bias(panels * kPanel * 4);
  std::copy(call.bias.data.begin(), call.bias.data.end(), bias.as<float>());
  const std::int64_t ldo = round_up(out_columns, std::int64_t{kLanes}) + 1;
  Aligned out(rows * ldo * 4 + 64, call.misalignment);
  if (call.initial.size() > 0) {
    for (std::int64_t r = 0; r < rows; ++r) std::copy_n(call.initial.at(r), out_columns, out.as<float>() + r * ldo);
  }
  LinearArgs args{.x = lhs.as<std::byte>(),
                  .ldx = in + 2,
                  .rows = rows,
                  .operand = operand,
                  .weight = coded ? coded_panels.data() : packed.as<std::byte>(),
                  .weight_dtype = dtype,
                  .coded = coded,
                  .in_columns = in,
                  .out_columns = out_columns,
                  .bias = call.bias.size() > 0 ? bias.as<float>() : nullptr,
                  .epilogue = gate_up                  ? Epilogue::kSwiGlu
                              : call.epilogue == "add" ? Epilogue::kAdd
                                                       : Epilogue::kStore,
                  .out = out.as<std::byte>(),
                  .ldo = ldo};
  for (std::int64_t panel = 0; panel < panels; panel += call.panels_per_call) {
    args.panel_begin = panel;
    args.panel_end = std::min(panel + call.panels_per_call, panels);
    kernels.linear(args);
  }
  Array result = Array::zeros({rows, out_columns});
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < out_columns; ++c) {
      *result.at(r, c) =
          gate_up ? load_operand(operand, out.as<std::byte>(), r * ldo + c) : out.as<float>()[r * ldo + c];
    }
  }
  return result;
}

Array decoded_rows(const Kernels& kernels, const Array& weight) {
  const std::int64_t in = weight.shape[1];
  const std::int64_t panels = ceil_div(weight.shape[0], std::int64_t{kPanel});
  Aligned packed(panels * kPanel * in * 2);
  pack(kernels, weight, DType::kBF16, false, packed.as<std::uint32_t>());
  CodedPanels coded(kernels, packed.as<std::uint32_t>(), panels, in);
  Array result = Array::zeros(weight.shape);
  for (std::int64_t row = 0; row < weight.shape[0]; ++row)
    decode_row(coded.panel(row / kPanel), static_cast<int>(row % kPanel), in / 2, result.at(row));
  return result;
}

Array rms_norm(const Kernels& kernels, const NormCall& call) {
  const Operand operand = operand_of(call.operand);
  const std::int64_t columns = call.x.size();
  Aligned in(columns * 4, call.misalignment);
  std::copy(call.x.data.begin(), call.x.data.end(), in.as<float>());
  Aligned out(columns * 4 + 64, call.misalignment);
  kernels.rms_norm({.x = in.as<float>(),
                    .weight = call.weight.data.data(),
                    .columns = columns,
                    .epsilon = call.epsilon,
                    .operand = operand,
                    .out = out.as<std::byte>()});
  Array result = Array::zeros(call.x.shape);
  for (std::int64_t c = 0; c < columns; ++c) *result.at(c) = load_operand(operand, out.as<std::byte>(), c);
  return result;
}

Array attention(const Kernels& kernels, const AttentionCall& call) {
  const Operand operand = operand_of(call.operand);
  const std::int64_t tokens = call.q.shape[0];
  const std::int64_t group = call.q.shape[1];
  const std::int64_t dim = call.q.shape[2];
  const std::int64_t context = call.keys.shape[0];
  // The head in the middle of three, in the middle layer: what the others' memory holds must not matter.
  const CacheLayout layout(3, 3, dim, parse_dtype(call.dtype, "dtype"));
  const std::int64_t words = layout.words(call.num_blocks * call.block_size);
  Aligned memory(words * 4);
  const CacheView cache = layout.view(memory.as<std::uint32_t>(), 1, 1, call.block_size);
  for (std::int64_t i = 0; i < words * elements_per_step(cache.dtype); ++i)
    store_element(cache.dtype, memory.as<std::byte>(), i, call.garbage);
  const std::vector<std::int32_t>& order = call.write_order;
  for (std::size_t i = 0; i < order.size();) {
    const std::int64_t first = order[i];
    std::int64_t run = 1;  // positions in a row that lie in one group
    while (++i < order.size() && order[i] == first + run && order[i] % kLanes != 0) ++run;
    const auto block = static_cast<std::size_t>(first / call.block_size);
    kernels.cache_write({.cache = cache,
                         .key = call.keys.at(first),
                         .ldk = dim,
                         .value = call.values.at(first),
                         .ldv = dim,
                         .rope = {call.cos.at(first), call.sin.at(first)},
                         .slot = call.block_table[block] * call.block_size + first % call.block_size,
                         .tokens = run,
                         .last_of_sequence = first + run == context});
  }
  Aligned scratch(static_cast<std::int64_t>(attention_scratch_bytes(dim)));
  const auto args_for = [&](std::int64_t row, Aligned& out) {
    return AttentionArgs{.context = {cache, call.block_table.data(), context},
                         .next = {},
                         .q = call.q.data.data(),
                         .ldq = group * dim,
                         .rope = {call.cos.data.data(), call.sin.data.data()},
                         .first_position = context - tokens,
                         .group = group,
                         .row_begin = row,
                         .row_end = std::min<std::int64_t>(row + kQueryRows, tokens * group),
                         .scale = call.scale,
                         .operand = operand,
                         .out = out.as<std::byte>(),
                         .ldo = group * dim,
                         .scratch = scratch.as<std::byte>()};
  };
  const auto values = [&](Aligned& out) {
    Array result = Array::zeros(call.q.shape);
    for (std::int64_t i = 0; i < call.q.size(); ++i)
      result.data[static_cast<std::size_t>(i)] = load_operand(operand, out.as<std::byte>(), i);
    return result;
  };
  Aligned out(call.q.size() * 4 + 64);
  for (std::int64_t row = 0; row < tokens * group; row += kQueryRows) kernels.attend(args_for(row, out));
  const Array result = values(out);
  if (tokens == 1) {
    Aligned merged(call.q.size() * 4 + 64);
    AttentionArgs args = args_for(0, merged);
    args.num_tiles = ceil_div(context, std::int64_t{kTilePositions});
    Aligned tiles(args.num_tiles * attention_tile_floats(group, cache.padded_dim) * 4);
    args.tiles = tiles.as<float>();
    for (args.tile = args.num_tiles - 1; args.tile >= 0; --args.tile) kernels.attend(args);
    kernels.merge_tiles(args);
    if (values(merged).data != result.data) throw std::logic_error("the tiles together differ from the whole context");
  }
  return result;
}

Array round_trip(const std::string& dtype_name, const Array& x) {
  const DType dtype = parse_dtype(dtype_name, "dtype");
  Array result = x;
  for (float& value : result.data) value = round_to(dtype, value);
  return result;
}

}  // namespace lb::testing
