#include "matmul.h"

#include <algorithm>

namespace atb_double {

bool read_matrix(const TensorDesc& weight, StoredMatrix& matrix) {
  const uint64_t dims = rank(weight);
  if (weight.format == ACL_FORMAT_FRACTAL_NZ && dims == 4) {  // {B, columns / 16, rows, 16}
    matrix = {dim(weight, 0), dim(weight, 2), dim(weight, 1) * 16};
    return dim(weight, 3) == 16 && dim(weight, 2) % 16 == 0;
  }
  if (dims != 2 && dims != 3) {
    return false;
  }
  matrix = {dims == 3 ? dim(weight, 0) : 1, dim(weight, dims - 2), dim(weight, dims - 1)};
  return weight.format == ACL_FORMAT_ND || (matrix.rows % 16 == 0 && matrix.columns % 16 == 0);
}

std::vector<Column> matmul_columns(bool has_bias, bool float_without_bias) {
  std::vector<Column> made;
  for (const aclDataType dtype : {ACL_FLOAT16, ACL_BF16}) {
    const Cell weight{dtype, /*nd=*/true, /*nz=*/true};
    if (has_bias) {
      made.push_back({{dtype}, weight, {dtype}, {dtype}});
      made.push_back({{dtype}, weight, {ACL_FLOAT}, {dtype}});
    } else {
      made.push_back({{dtype}, weight, {dtype}});
    }
  }
  if (!has_bias && float_without_bias) {
    made.push_back({{ACL_FLOAT}, {ACL_FLOAT}, {ACL_FLOAT}});
  }
  return made;
}

Status Matmul::infer(const std::string& who, const TensorDesc& x, const TensorDesc& weight, const TensorDesc* bias,
                     TensorDesc& out) const {
  if (rank(x) != 2 && rank(x) != 3) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, who, "x is " + to_string(x) + ", expected rank 2 or 3");
  }
  StoredMatrix matrix;
  if (!read_matrix(weight, matrix)) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, who, "weight is " + to_string(weight));
  }
  const uint64_t row_dim = rank(x) - 2;
  const int64_t m = dim(x, transpose_a ? row_dim + 1 : row_dim);
  const int64_t k = dim(x, transpose_a ? row_dim : row_dim + 1);
  const int64_t n = transpose_b ? matrix.rows : matrix.columns;
  const int64_t weight_k = transpose_b ? matrix.columns : matrix.rows;
  const bool padded = weight.format == ACL_FORMAT_FRACTAL_NZ && rank(weight) == 4;
  if (padded ? (k + 15) / 16 * 16 != weight_k : k != weight_k) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM, who,
                  "x " + to_string(x) + " and weight " + to_string(weight) + " differ in k");
  }
  if (matrix.batch != 1 && (rank(x) != 3 || dim(x, 0) != matrix.batch)) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM, who, "x and weight differ in their batch");
  }
  if (bias != nullptr) {
    const bool vector = rank(*bias) == 1 || (rank(*bias) == 2 && dim(*bias, 0) == 1);
    if (!vector || last_dim(*bias) != n) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, who,
                    "bias is " + to_string(*bias) + ", expected [" + std::to_string(n) + "]");
    }
  }
  out = rank(x) == 2 ? described(x.dtype, ACL_FORMAT_ND, {m, n}) : described(x.dtype, ACL_FORMAT_ND, {dim(x, 0), m, n});
  return atb::NO_ERROR;
}

namespace {

// Eight sums, so that the compiler may use vectors.
float dot(const float* a, const float* b, int64_t count) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      sums[lane] += a[i + lane] * b[i + lane];
    }
  }
  float sum = 0;
  for (; i < count; ++i) {
    sum += a[i] * b[i];
  }
  for (const float part : sums) {
    sum += part;
  }
  return sum;
}

// The weight as [n][k] floats.
std::vector<float> unpack(const View& weight, const StoredMatrix& matrix, int64_t batch, bool transposed) {
  const int64_t count = matrix.rows * matrix.columns;
  std::vector<float> stored(static_cast<std::size_t>(count));
  load(weight, batch * count, stored);
  const bool nz = weight.desc.format == ACL_FORMAT_FRACTAL_NZ;
  if (!nz && transposed) {
    return stored;
  }
  std::vector<float> result(stored.size());
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t column = 0; column < matrix.columns; ++column) {
      const int64_t from = nz ? nz_index(row, column, matrix.rows) : row * matrix.columns + column;
      const int64_t to = transposed ? row * matrix.columns + column : column * matrix.rows + row;
      result[static_cast<std::size_t>(to)] = stored[static_cast<std::size_t>(from)];
    }
  }
  return result;
}

}  // namespace

std::vector<float> Matmul::run(const View& x, const View& weight, const View* bias) const {
  StoredMatrix matrix;
  read_matrix(weight.desc, matrix);
  const uint64_t row_dim = rank(x.desc) - 2;
  const int64_t batches = row_dim == 1 ? dim(x.desc, 0) : 1;
  const int64_t m = dim(x.desc, transpose_a ? row_dim + 1 : row_dim);
  const int64_t k = dim(x.desc, transpose_a ? row_dim : row_dim + 1);
  const int64_t n = transpose_b ? matrix.rows : matrix.columns;
  const int64_t stride = transpose_b ? matrix.columns : matrix.rows;  // Of unpacked rows; more than k when padded.
  const std::vector<float> offsets =
      bias == nullptr ? std::vector<float>(static_cast<std::size_t>(n), 0.0F) : load_all(*bias);
  std::vector<float> a = load_all(x);
  std::vector<float> b;
  std::vector<float> row(static_cast<std::size_t>(k));
  std::vector<float> y(static_cast<std::size_t>(batches * m * n));
  for (int64_t batch = 0; batch < batches; ++batch) {
    if (batch == 0 || matrix.batch > 1) {
      b = unpack(weight, matrix, batch, transpose_b);
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        row[static_cast<std::size_t>(j)] =
            a[static_cast<std::size_t>(batch * m * k + (transpose_a ? j * m + i : i * k + j))];
      }
      for (int64_t j = 0; j < n; ++j) {
        y[static_cast<std::size_t>((batch * m + i) * n + j)] =
            dot(row.data(), b.data() + j * stride, k) + offsets[static_cast<std::size_t>(j)];
      }
    }
  }
  return y;
}

}  // namespace atb_double
