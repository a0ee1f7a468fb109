// Kernels over NumPy arrays: packs operands as the backend does, calls one level's kernel, gives plain arrays back.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cpu/isa.h"
#include "base/memory.h"

namespace py = pybind11;
using namespace py::literals;
using namespace lb;
using namespace lb::cpu;

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;

const Kernels& level(const std::string& name) {
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->name) return *kernels;
  }
  throw std::invalid_argument("no level " + name);
}

Operand operand_of(const std::string& name) {
  if (name == "bf16") return Operand::kBf16;
  return name == "f32" ? Operand::kF32 : Operand::kF32Rounded;
}

// A 64-byte aligned buffer that starts `misalignment` bytes later.
class Aligned {
 public:
  explicit Aligned(std::size_t bytes, std::size_t misalignment = 0) : buffer_(bytes + 4096), offset_(misalignment) {}
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(buffer_.data() + offset_);
  }

 private:
  Buffer buffer_;
  std::size_t offset_;
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

// Rows of `weight` that fill a lane group, in storage type, packed into `panels`.
void pack(const Kernels& kernels, const Floats& weight, DType dtype, bool gate_up, std::uint32_t* panels) {
  const std::int64_t rows = weight.shape(0);
  const std::int64_t columns = weight.shape(1);
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
        store_element(dtype, staging.data(), r * columns + c, weight.at(first + r, c));
    }
    kernels.pack_rows(reinterpret_cast<std::uint32_t*>(staging.data()), steps, static_cast<int>(valid), steps,
                      panels + group / 2 * steps * kPanel + group % 2 * kLanes);
  }
}

py::array_t<float> linear(const std::string& isa, const Floats& x, const Floats& weight, const std::string& dtype_name,
                          const std::string& operand_name, const std::string& epilogue,
                          const std::optional<Floats>& bias, const std::optional<Floats>& initial,
                          std::int64_t panels_per_call, std::size_t misalignment) {
  const Kernels& kernels = level(isa);
  const DType dtype = parse_dtype(dtype_name, "dtype");
  const Operand operand = operand_of(operand_name);
  const bool gate_up = epilogue == "swiglu";
  const std::int64_t rows = x.shape(0);
  const std::int64_t in = x.shape(1);
  const std::int64_t out_columns = gate_up ? weight.shape(0) / 2 : weight.shape(0);
  const std::int64_t panels = ceil_div(out_columns, std::int64_t{gate_up ? kLanes : kPanel});

  Aligned packed(static_cast<std::size_t>(panels * kPanel * in) * 4);
  pack(kernels, weight, dtype, gate_up, packed.as<std::uint32_t>());
  Aligned lhs(static_cast<std::size_t>(rows * (in + 2)) * 4, misalignment);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < in; ++c) store_operand(operand, lhs.as<std::byte>(), r * (in + 2) + c, x.at(r, c));
  }
  Aligned padded_bias(static_cast<std::size_t>(panels * kPanel) * 4);
  if (bias) std::copy_n(bias->data(), bias->size(), padded_bias.as<float>());
  const std::int64_t ldo = round_up(out_columns, std::int64_t{kLanes}) + 1;
  Aligned out(static_cast<std::size_t>(rows * ldo) * 4 + 64, misalignment);
  if (initial) {
    for (std::int64_t r = 0; r < rows; ++r) std::copy_n(initial->data(r, 0), out_columns, out.as<float>() + r * ldo);
  }
  LinearArgs args{.x = lhs.as<std::byte>(),
                  .ldx = in + 2,
                  .rows = rows,
                  .operand = operand,
                  .weight = packed.as<std::uint32_t>(),
                  .weight_dtype = dtype,
                  .in_columns = in,
                  .out_columns = out_columns,
                  .bias = bias ? padded_bias.as<float>() : nullptr,
                  .epilogue = gate_up             ? Epilogue::kSwiGlu
                              : epilogue == "add" ? Epilogue::kAdd
                                                  : Epilogue::kStore,
                  .out = out.as<std::byte>(),
                  .ldo = ldo};
  for (std::int64_t panel = 0; panel < panels; panel += panels_per_call) {
    args.panel_begin = panel;
    args.panel_end = std::min(panel + panels_per_call, panels);
    kernels.linear(args);
  }
  py::array_t<float> result({rows, out_columns});
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < out_columns; ++c) {
      *result.mutable_data(r, c) =
          gate_up ? load_operand(operand, out.as<std::byte>(), r * ldo + c) : out.as<float>()[r * ldo + c];
    }
  }
  return result;
}

py::array_t<float> rms_norm(const std::string& isa, const Floats& x, const Floats& weight, float epsilon,
                            const std::string& operand_name, std::size_t misalignment) {
  const Operand operand = operand_of(operand_name);
  const std::int64_t columns = x.size();
  Aligned in(static_cast<std::size_t>(columns) * 4, misalignment);
  std::copy_n(x.data(), columns, in.as<float>());
  Aligned out(static_cast<std::size_t>(columns) * 4 + 64, misalignment);
  level(isa).rms_norm({.x = in.as<float>(),
                       .weight = weight.data(),
                       .columns = columns,
                       .epsilon = epsilon,
                       .operand = operand,
                       .out = out.as<std::byte>()});
  py::array_t<float> result(columns);
  for (std::int64_t c = 0; c < columns; ++c) *result.mutable_data(c) = load_operand(operand, out.as<std::byte>(), c);
  return result;
}

// Attention of one kv head: keys and values [context, D] are written to a cache through `block_table`, in the order of
// `write_order`; the last tokens of the context are the queries [tokens, group, D].
py::array_t<float> attention(const std::string& isa, const Floats& q, const Floats& keys, const Floats& values,
                             const Floats& cos, const Floats& sin, const Ints& block_table, std::int64_t block_size,
                             std::int64_t num_blocks, float scale, const std::string& dtype_name,
                             const std::string& operand_name, const Ints& write_order, float garbage) {
  const Kernels& kernels = level(isa);
  const Operand operand = operand_of(operand_name);
  const std::int64_t tokens = q.shape(0);
  const std::int64_t group = q.shape(1);
  const std::int64_t dim = q.shape(2);
  const std::int64_t context = keys.shape(0);
  CacheView cache;
  cache.block_size = block_size;
  cache.head_dim = dim;
  cache.padded_dim = round_up(dim, std::int64_t{kLanes});
  cache.dtype = parse_dtype(dtype_name, "dtype");
  const std::int64_t per_step = elements_per_step(cache.dtype);
  cache.group_stride = (dim + cache.padded_dim) * kLanes / per_step;
  const std::int64_t words = num_blocks * block_size / kLanes * cache.group_stride;
  Aligned memory(static_cast<std::size_t>(words) * 4);
  for (std::int64_t i = 0; i < words * per_step; ++i) store_element(cache.dtype, memory.as<std::byte>(), i, garbage);
  cache.keys = memory.as<std::uint32_t>();
  cache.values = cache.keys + dim * kLanes / per_step;
  for (py::ssize_t i = 0; i < write_order.size(); ++i) {
    const std::int64_t position = write_order.at(i);
    kernels.cache_write({.cache = cache,
                         .key = keys.data(position, 0),
                         .value = values.data(position, 0),
                         .rope = {cos.data(position, 0), sin.data(position, 0)},
                         .slot = block_table.at(position / block_size) * block_size + position % block_size,
                         .last_of_sequence = position == context - 1});
  }
  Aligned out(static_cast<std::size_t>(q.size()) * 4 + 64);
  Aligned scratch(attention_scratch_bytes(dim));
  for (std::int64_t row = 0; row < tokens * group; row += kQueryRows) {
    kernels.attend({.cache = cache,
                    .block_table = block_table.data(),
                    .q = q.data(),
                    .ldq = group * dim,
                    .rope = {cos.data(), sin.data()},
                    .first_position = context - tokens,
                    .group = group,
                    .row_begin = row,
                    .row_end = std::min<std::int64_t>(row + kQueryRows, tokens * group),
                    .scale = scale,
                    .operand = operand,
                    .out = out.as<std::byte>(),
                    .ldo = group * dim,
                    .scratch = scratch.as<std::byte>()});
  }
  py::array_t<float> result({tokens, group, dim});
  for (py::ssize_t i = 0; i < q.size(); ++i) result.mutable_data()[i] = load_operand(operand, out.as<std::byte>(), i);
  return result;
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.attr("TILE_POSITIONS") = kTilePositions;
  m.attr("QUERY_ROWS") = kQueryRows;
  m.def("has_bf16_dot", [](const std::string& isa) { return level(isa).bf16_dot; });
  m.def("linear", &linear, "isa"_a, "x"_a, "weight"_a, "dtype"_a, "operand"_a, "epilogue"_a = "store",
        "bias"_a = py::none(), "initial"_a = py::none(), "panels_per_call"_a = 1 << 20, "misalignment"_a = 0);
  m.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "weight"_a, "epsilon"_a, "operand"_a, "misalignment"_a = 0);
  m.def("attention", &attention, "isa"_a, "q"_a, "keys"_a, "values"_a, "cos"_a, "sin"_a, "block_table"_a,
        "block_size"_a, "num_blocks"_a, "scale"_a, "dtype"_a, "operand"_a, "write_order"_a, "garbage"_a);
  m.def("max_value", [](const std::string& isa, const Floats& x) { return level(isa).max_value(x.data(), x.size()); });
  m.def("sum_exp", [](const std::string& isa, const Floats& x, float maximum, float factor) {
    return level(isa).sum_exp(x.data(), x.size(), maximum, factor);
  });
  m.def("collect_at_least", [](const std::string& isa, const Floats& x, float threshold) {
    std::vector<std::int32_t> indices(static_cast<std::size_t>(x.size()));
    indices.resize(
        static_cast<std::size_t>(level(isa).collect_at_least(x.data(), x.size(), threshold, indices.data())));
    return indices;
  });
  m.def("round_trip", [](const std::string& dtype_name, const Floats& x) {
    const DType dtype = parse_dtype(dtype_name, "dtype");
    py::array_t<float> result(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      const float value = x.data()[i];
      result.mutable_data()[i] = dtype == DType::kF32   ? value
                                 : dtype == DType::kF16 ? to_float(to_f16(value))
                                                        : to_float(to_bf16(value));
    }
    return result;
  });
}
