#include "binding/weights.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
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

}  // namespace

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

}  // namespace lb
