#include "binding/model_records.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "base/convert.h"
#include "base/error.h"
#include "model/model.h"
#include "model/weights.h"

namespace py = pybind11;
using namespace py::literals;

namespace lb {
namespace {

using FileRange = std::tuple<std::string, std::uint64_t, std::uint64_t>;  // path, offset, bytes
using Part = std::variant<FileRange, py::buffer>;

// The memory of a Python object, which lives until the segment is gone.
Segment segment_of(const std::string& name, const py::buffer& buffer) {
  const auto release = [](py::buffer_info* info) {
    const py::gil_scoped_acquire gil;
    delete info;
  };
  const std::shared_ptr<py::buffer_info> info(new py::buffer_info(buffer.request()), release);
  py::ssize_t stride = info->itemsize;
  for (py::ssize_t i = info->ndim; i-- > 0;) {
    if (info->shape[static_cast<std::size_t>(i)] != 1 && info->strides[static_cast<std::size_t>(i)] != stride)
      throw CheckpointError(cat("'", name, "': an array that is not contiguous"));
    stride *= info->shape[static_cast<std::size_t>(i)];
  }
  const auto bytes = static_cast<std::uint64_t>(info->size * info->itemsize);
  return {std::make_shared<const Memory>(cat("memory of '", name, "'"),
                                         std::span(static_cast<const std::byte*>(info->ptr), bytes), info),
          0, bytes};
}

using FloatArray = py::array_t<float, py::array::c_style>;

template <std::vector<float> ModelConfig::* kMember>
FloatArray floats(const ModelConfig& config) {
  return FloatArray(static_cast<py::ssize_t>((config.*kMember).size()), (config.*kMember).data());
}

template <std::vector<float> ModelConfig::* kMember>
void set_floats(ModelConfig& config, const FloatArray& values) {
  (config.*kMember).assign(values.data(), values.data() + values.size());
}

void bind_config(py::module_& m) {
  py::class_<ModelConfig>(m, "ModelConfig", "Shape and numeric settings of a model; see csrc/model/config.h.")
      .def(py::init<>())
      .def_readwrite("architecture", &ModelConfig::architecture)
      .def_readwrite("hidden_size", &ModelConfig::hidden_size)
      .def_readwrite("intermediate_size", &ModelConfig::intermediate_size)
      .def_readwrite("num_layers", &ModelConfig::num_layers)
      .def_readwrite("num_heads", &ModelConfig::num_heads)
      .def_readwrite("num_kv_heads", &ModelConfig::num_kv_heads)
      .def_readwrite("head_dim", &ModelConfig::head_dim)
      .def_readwrite("vocab_size", &ModelConfig::vocab_size)
      .def_readwrite("max_positions", &ModelConfig::max_positions)
      .def_readwrite("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readwrite("qkv_bias", &ModelConfig::qkv_bias)
      .def_readwrite("output_bias", &ModelConfig::output_bias)
      .def_readwrite("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def_readwrite("rope_inv_freq", &ModelConfig::rope_inv_freq)
      .def_readwrite("rope_position_scale", &ModelConfig::rope_position_scale)
      .def_readwrite("rope_amplitude", &ModelConfig::rope_amplitude)
      .def_property("rope_cos", &floats<&ModelConfig::rope_cos>, &set_floats<&ModelConfig::rope_cos>)
      .def_property("rope_sin", &floats<&ModelConfig::rope_sin>, &set_floats<&ModelConfig::rope_sin>)
      .def_property(
          "rope_dtype", [](const ModelConfig& config) { return name(config.rope_dtype); },
          [](ModelConfig& config, std::string_view dtype) { config.rope_dtype = parse_dtype(dtype, "rope_dtype"); });
  m.def("architecture_names", &architecture_names, "Architectures that can be built.");
  m.def(
      "expected_weights",
      [](const ModelConfig& config) {
        std::vector<std::pair<std::string, std::vector<std::int64_t>>> weights;
        for (WeightSpec& spec : expected_weights(build_model(config))) weights.emplace_back(spec.name, spec.shape);
        return weights;
      },
      "config"_a, "Canonical names and shapes of all weights of a model. Raises ConfigError.");
  m.def(
      "graph_text",
      [](const ModelConfig& config) {
        const ModelGraph graph = build_model(config);
        return to_string(graph.embed) + to_string(graph.layer) + to_string(graph.head);
      },
      "config"_a, "The model's graphs, one line a node. Raises ConfigError.");
}

void bind_weights(py::module_& m) {
  py::class_<WeightTable>(m, "WeightTable", "Where each canonical weight of a model is stored.")
      .def(py::init<>())
      .def(
          "add",
          [](WeightTable& table, std::string name, std::string_view dtype, std::vector<std::int64_t> shape,
             const std::vector<Part>& parts) {
            std::vector<Segment> segments;
            for (const Part& part : parts) {
              if (const auto* range = std::get_if<FileRange>(&part)) {
                const auto& [path, offset, bytes] = *range;
                segments.push_back({table.open(path), offset, bytes});
              } else {
                segments.push_back(segment_of(name, std::get<py::buffer>(part)));
              }
            }
            table.add(
                StoredTensor(std::move(name), parse_dtype(dtype, "dtype"), std::move(shape), std::move(segments)));
          },
          "name"_a, "dtype"_a, "shape"_a, "segments"_a,
          "Adds a row-major tensor: its segments in order, (path, offset, bytes) or contiguous memory, which is not "
          "copied. Raises CheckpointError.");
}

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

std::int64_t convert_elements(const Bytes& source, std::string_view from, Bytes& target, std::string_view to) {
  const DType stored = parse_dtype(from, "dtype"), wanted = parse_dtype(to, "dtype");
  const auto count = source.size() / static_cast<py::ssize_t>(size_bytes(stored));
  LB_CHECK(source.size() == count * static_cast<py::ssize_t>(size_bytes(stored)) &&
               target.size() == count * static_cast<py::ssize_t>(size_bytes(wanted)),
           source.size(), " bytes of ", from, " into ", target.size(), " of ", to);
  const auto* in = reinterpret_cast<const std::byte*>(source.data());
  auto* out = reinterpret_cast<std::byte*>(target.mutable_data());
  const py::gil_scoped_release release;
  return convert(stored, in, count, wanted, out);
}

}  // namespace

void bind_model_records(py::module_& m) {
  bind_config(m);
  bind_weights(m);
  m.def("convert_elements", &convert_elements, "source"_a.noconvert(), "dtype"_a, "target"_a.noconvert(),
        "target_dtype"_a,
        "Converts the elements that the bytes are, to nearest; gives the index of the first finite one that became "
        "infinite, or -1.");
}

}  // namespace lb
