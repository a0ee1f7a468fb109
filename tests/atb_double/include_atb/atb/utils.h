#ifndef ATB_DOUBLE_ATB_UTILS_H
#define ATB_DOUBLE_ATB_UTILS_H

#include <cstdint>

#include "atb/types.h"

namespace atb {

class Utils {
 public:
  static uint64_t GetTensorSize(const Tensor& tensor);
  static uint64_t GetTensorSize(const TensorDesc& tensorDesc);
};

}  // namespace atb

#endif
