#include "base/dtype.h"

#include "base/error.h"

namespace lb {

std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kF16: return "float16";
    case DType::kBF16: return "bfloat16";
  }
  return "?";
}

DType parse_dtype(std::string_view text, std::string_view what) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (text == name(dtype)) return dtype;
  }
  throw ConfigError(cat(what, " is '", text, "', expected one of float32, float16, bfloat16"));
}

// Conversions of the native type are exact in this direction and correctly rounded in the other, in hardware or in
// libgcc.
float to_float(F16 x) { return static_cast<float>(std::bit_cast<NativeF16>(x)); }

F16 to_f16(float x) { return std::bit_cast<F16>(static_cast<NativeF16>(x)); }

float round_to(DType dtype, float x) {
  switch (dtype) {
    case DType::kF32: return x;
    case DType::kF16: return to_float(to_f16(x));
    case DType::kBF16: return to_float(to_bf16(x));
  }
  return x;
}

}  // namespace lb
