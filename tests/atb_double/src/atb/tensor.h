#ifndef ATB_DOUBLE_SRC_ATB_TENSOR_H
#define ATB_DOUBLE_SRC_ATB_TENSOR_H

// Descriptions of tensors, and their elements as floats.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "atb/atb_infer.h"

namespace atb_double {

using atb::Dims;
using atb::Status;
using atb::Tensor;
using atb::TensorDesc;

// A tensor as kernels see it: addresses that the stream's thread can reach.
struct View {
  TensorDesc desc;
  std::byte* data = nullptr;
};

uint64_t element_bytes(aclDataType dtype);  // 0 for a type without a size.
uint64_t size_bytes(const TensorDesc& desc);
int64_t num_elements(const TensorDesc& desc);
inline int64_t dim(const TensorDesc& desc, uint64_t i) { return desc.shape.dims[i]; }
inline uint64_t rank(const TensorDesc& desc) { return desc.shape.dimNum; }
int64_t last_dim(const TensorDesc& desc);
// Product of dims [begin, end).
int64_t product(const TensorDesc& desc, uint64_t begin, uint64_t end);
bool same_shape(const Dims& a, const Dims& b);
bool same(const TensorDesc& a, const TensorDesc& b);
TensorDesc described(aclDataType dtype, aclFormat format, std::initializer_list<int64_t> dims);
std::string to_string(const TensorDesc& desc);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
uint16_t float_to_bfloat(float value);

void load(const View& view, int64_t first, std::span<float> values);
std::vector<float> load_all(const View& view);
void store(const View& view, int64_t first, std::span<const float> values);
std::vector<int64_t> load_integers(const View& view);

// Position of element (row, column) of a matrix in FRACTAL_NZ: tiles of 16 columns, each with all rows.
inline int64_t nz_index(int64_t row, int64_t column, int64_t rows16) {
  return (column / 16 * rows16 + row) * 16 + column % 16;
}

}  // namespace atb_double

#endif
