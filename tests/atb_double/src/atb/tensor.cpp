#include "tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace atb_double {

uint64_t element_bytes(aclDataType dtype) {
  switch (dtype) {
    case ACL_INT8:
    case ACL_UINT8:
    case ACL_BOOL: return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16: return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32: return 4;
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_DOUBLE: return 8;
    default: return 0;
  }
}

int64_t product(const TensorDesc& desc, uint64_t begin, uint64_t end) {
  int64_t result = 1;
  for (uint64_t i = begin; i < end; ++i) {
    result *= std::max<int64_t>(desc.shape.dims[i], 0);
  }
  return result;
}

int64_t num_elements(const TensorDesc& desc) { return rank(desc) == 0 ? 0 : product(desc, 0, rank(desc)); }

uint64_t size_bytes(const TensorDesc& desc) {
  return static_cast<uint64_t>(num_elements(desc)) * element_bytes(desc.dtype);
}

int64_t last_dim(const TensorDesc& desc) { return desc.shape.dims[rank(desc) - 1]; }

bool same_shape(const Dims& a, const Dims& b) {
  return a.dimNum == b.dimNum && std::equal(a.dims, a.dims + a.dimNum, b.dims);
}

bool same(const TensorDesc& a, const TensorDesc& b) {
  return a.dtype == b.dtype && a.format == b.format && same_shape(a.shape, b.shape);
}

TensorDesc described(aclDataType dtype, aclFormat format, std::initializer_list<int64_t> dims) {
  TensorDesc desc;
  desc.dtype = dtype;
  desc.format = format;
  desc.shape.dimNum = dims.size();
  std::copy(dims.begin(), dims.end(), desc.shape.dims);
  return desc;
}

std::string to_string(const TensorDesc& desc) {
  const char* name = "?";
  switch (desc.dtype) {
    case ACL_FLOAT: name = "f32"; break;
    case ACL_FLOAT16: name = "f16"; break;
    case ACL_BF16: name = "bf16"; break;
    case ACL_INT8: name = "i8"; break;
    case ACL_INT32: name = "i32"; break;
    case ACL_INT64: name = "i64"; break;
    case ACL_UINT32: name = "u32"; break;
    default: break;
  }
  std::string text = name;
  text += desc.format == ACL_FORMAT_ND ? "[" : desc.format == ACL_FORMAT_FRACTAL_NZ ? " NZ[" : " (no format)[";
  for (uint64_t i = 0; i < std::min<uint64_t>(rank(desc), atb::MAX_DIM); ++i) {
    text.append(i == 0 ? "" : ", ").append(std::to_string(dim(desc, i)));
  }
  return text + "]";
}

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                  : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  if (exponent == 31) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Round to nearest, ties to even.
uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) {
    return 0x7E00;
  }
  if (magnitude >= 65520.0F) {
    return static_cast<uint16_t>(sign | 0x7C00);
  }
  // Below 2^-14 the spacing is that of the subnormals, 2^-24; above, 2^-10 of the leading bit.
  const int exponent = magnitude < 0x1p-14F ? -14 : std::ilogb(magnitude);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

uint16_t float_to_bfloat(float value) {
  if (std::isnan(value)) {
    return 0x7FC0;
  }
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

namespace {

// Every half as a float, since ldexp is slow.
const float* half_table() {
  static const std::vector<float>* table = [] {
    auto* made = new std::vector<float>(65536);
    for (uint32_t i = 0; i < made->size(); ++i) {
      (*made)[i] = half_to_float(static_cast<uint16_t>(i));
    }
    return made;
  }();
  return table->data();
}

template <typename T, typename Out, typename Convert>
void read(const View& view, int64_t first, std::span<Out> values, Convert convert) {
  const std::byte* from = view.data + static_cast<uint64_t>(first) * sizeof(T);
  for (Out& value : values) {
    T element;
    std::memcpy(&element, from, sizeof(T));
    from += sizeof(T);
    value = convert(element);
  }
}

template <typename T, typename Convert>
void write(const View& view, int64_t first, std::span<const float> values, Convert convert) {
  std::byte* to = view.data + static_cast<uint64_t>(first) * sizeof(T);
  for (const float value : values) {
    const T element = convert(value);
    std::memcpy(to, &element, sizeof(T));
    to += sizeof(T);
  }
}

}  // namespace

void load(const View& view, int64_t first, std::span<float> values) {
  const auto widen = [](auto element) { return static_cast<float>(element); };
  switch (view.desc.dtype) {
    case ACL_FLOAT: return read<float>(view, first, values, widen);
    case ACL_FLOAT16:
      return read<uint16_t>(view, first, values, [table = half_table()](uint16_t h) { return table[h]; });
    case ACL_BF16:
      return read<uint16_t>(view, first, values, [](uint16_t bits) {
        const uint32_t wide = uint32_t{bits} << 16U;
        float value = 0;
        std::memcpy(&value, &wide, sizeof(value));
        return value;
      });
    case ACL_INT8: return read<int8_t>(view, first, values, widen);
    case ACL_INT32: return read<int32_t>(view, first, values, widen);
    case ACL_INT64: return read<int64_t>(view, first, values, widen);
    default: std::fill(values.begin(), values.end(), NAN);
  }
}

std::vector<float> load_all(const View& view) {
  std::vector<float> values(static_cast<std::size_t>(num_elements(view.desc)));
  load(view, 0, values);
  return values;
}

void store(const View& view, int64_t first, std::span<const float> values) {
  const auto narrow = []<typename T>(T) { return [](float value) { return static_cast<T>(value); }; };
  switch (view.desc.dtype) {
    case ACL_FLOAT: return write<float>(view, first, values, narrow(0.0F));
    case ACL_FLOAT16: return write<uint16_t>(view, first, values, float_to_half);
    case ACL_BF16: return write<uint16_t>(view, first, values, float_to_bfloat);
    case ACL_INT8: return write<int8_t>(view, first, values, narrow(int8_t{}));
    case ACL_INT32: return write<int32_t>(view, first, values, narrow(int32_t{}));
    case ACL_INT64: return write<int64_t>(view, first, values, narrow(int64_t{}));
    default: return;
  }
}

std::vector<int64_t> load_integers(const View& view) {
  std::vector<int64_t> values(static_cast<std::size_t>(num_elements(view.desc)));
  const std::span<int64_t> all(values);
  const auto widen = [](auto element) { return static_cast<int64_t>(element); };
  switch (view.desc.dtype) {
    case ACL_INT64: read<int64_t>(view, 0, all, widen); break;
    case ACL_UINT32: read<uint32_t>(view, 0, all, widen); break;
    default: read<int32_t>(view, 0, all, widen); break;
  }
  return values;
}

}  // namespace atb_double

uint64_t atb::Utils::GetTensorSize(const TensorDesc& desc) { return atb_double::size_bytes(desc); }
uint64_t atb::Utils::GetTensorSize(const Tensor& tensor) { return atb_double::size_bytes(tensor.desc); }
