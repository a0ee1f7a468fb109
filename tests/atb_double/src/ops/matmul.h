#ifndef ATB_DOUBLE_SRC_OPS_MATMUL_H
#define ATB_DOUBLE_SRC_OPS_MATMUL_H

// The matrix product of Linear and LinearParallel.

#include "atb/base.h"

namespace atb_double {

struct Matmul {
  bool transpose_a = false;
  bool transpose_b = true;

  // Sets `out`; x [m, k] or [B, m, k], weight [n, k] (or [k, n]), its rank-3 and NZ forms, bias [n] or [1, n] or null.
  Status infer(const std::string& who, const TensorDesc& x, const TensorDesc& weight, const TensorDesc* bias,
               TensorDesc& out) const;
  // The product, with bias, as floats.
  std::vector<float> run(const View& x, const View& weight, const View* bias) const;
};

// The stored matrix: rows and columns of a weight in any of its forms.
struct StoredMatrix {
  int64_t batch = 1;
  int64_t rows = 0;
  int64_t columns = 0;
};

// `columns` of an NZ weight in its 4-D form are padded to 16 and cannot be known better.
bool read_matrix(const TensorDesc& weight, StoredMatrix& matrix);

// Columns of x, weight (ND or NZ), an optional bias, and the output.
std::vector<Column> matmul_columns(bool has_bias, bool float_without_bias);

}  // namespace atb_double

#endif
