// Answers calls of single kernels on standard input, one after another, until it ends: tests/reference/kernel_client.py
// is the other side. A call is a function's name, a level's name and the function's arguments; an answer is an array.
// Numbers are little-endian: text is {bytes i64, characters}, an array {dimensions i64, extents i64..., elements f32}.
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cpu/isa.h"
#include "kernel_calls.h"

namespace {

using namespace lb;
using namespace lb::testing;

template <class T>
std::vector<T> read_many(std::size_t count) {
  std::vector<T> values(count);
  if (count > 0 && std::fread(values.data(), sizeof(T), count, stdin) != count)
    throw std::runtime_error("a call is cut off");
  return values;
}

std::int64_t read_int() { return read_many<std::int64_t>(1).front(); }
float read_float() { return read_many<float>(1).front(); }

std::string read_text() {
  const std::vector<char> text = read_many<char>(static_cast<std::size_t>(read_int()));
  return {text.begin(), text.end()};
}

Array read_array() {
  Array array;
  array.shape = read_many<std::int64_t>(static_cast<std::size_t>(read_int()));
  std::int64_t size = 1;
  for (const std::int64_t extent : array.shape) size *= extent;
  array.data = read_many<float>(static_cast<std::size_t>(size));
  return array;
}

std::vector<std::int32_t> read_ints() { return read_many<std::int32_t>(static_cast<std::size_t>(read_int())); }

template <class T>
void write_many(const std::vector<T>& values) {
  if (!values.empty()) std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

void write(const Array& array) {
  write_many(std::vector{static_cast<std::int64_t>(array.shape.size())});
  write_many(array.shape);
  write_many(array.data);
  std::fflush(stdout);
}

Array scalar(float value) { return {{}, {value}}; }

const cpu::Kernels& level(const std::string& name) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    if (name == kernels->name) return *kernels;
  }
  throw std::runtime_error("no level " + name);
}

Array collect_between(const cpu::Kernels& kernels, const Array& x, float low, float high) {
  std::vector<std::int32_t> indices(x.data.size());
  const std::int64_t count = kernels.collect_between(x.data.data(), x.size(), low, high, indices.data());
  return {{count}, {indices.begin(), indices.begin() + count}};
}

Array exp_weights(const cpu::Kernels& kernels, const Array& x, float maximum, float factor) {
  Array weights = Array::zeros(x.shape);
  kernels.exp_weights(x.data.data(), x.size(), maximum, factor, weights.data.data());
  return weights;
}

// Members of a braced list are read in order.
Array answer(const std::string& function, const cpu::Kernels& kernels) {
  if (function == "linear") {
    return linear(kernels, LinearCall{read_array(), read_array(), read_text(), read_text(), read_text(), read_array(),
                                      read_array(), read_int(), read_int()});
  }
  if (function == "decoded_rows") return decoded_rows(kernels, read_array());
  if (function == "rms_norm")
    return rms_norm(kernels, NormCall{read_array(), read_array(), read_float(), read_text(), read_int()});
  if (function == "attention") {
    return attention(kernels, AttentionCall{read_array(), read_array(), read_array(), read_array(), read_array(),
                                            read_ints(), read_int(), read_int(), read_float(), read_text(), read_text(),
                                            read_ints(), read_float()});
  }
  if (function == "has_bf16_dot") return scalar(kernels.bf16_dot ? 1 : 0);
  if (function == "round_trip") {
    const std::string dtype = read_text();
    return round_trip(dtype, read_array());
  }
  const Array x = read_array();
  if (function == "max_value") return scalar(kernels.max_value(x.data.data(), x.size()));
  const float first = read_float();
  if (function == "sum_at_least")
    return scalar(static_cast<float>(kernels.sum_at_least(x.data.data(), x.size(), first)));
  if (function == "collect_between") return collect_between(kernels, x, first, read_float());
  if (function == "exp_weights") return exp_weights(kernels, x, first, read_float());
  if (function == "sum_exp") return scalar(kernels.sum_exp(x.data.data(), x.size(), first, read_float()));
  throw std::runtime_error("no function " + function);
}

}  // namespace

int main() {
  try {
    for (int next = std::getchar(); next != EOF; next = std::getchar()) {
      std::ungetc(next, stdin);
      const std::string function = read_text();
      write(answer(function, level(read_text())));
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llm_boost_kernel_server: %s\n", error.what());
    return 1;
  }
}
