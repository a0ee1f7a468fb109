#include "bench/random_weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"

namespace lb::bench {
namespace {

constexpr std::int64_t kElements = std::int64_t{1} << 20;
constexpr float kDeviation = 0.02F;

void append(std::vector<std::byte>& bytes, DType dtype, float x) {
  std::byte element[4];
  const std::size_t size = size_bytes(dtype);
  if (dtype == DType::kF32) std::memcpy(element, &x, size);
  if (dtype == DType::kF16) std::memcpy(element, &static_cast<const F16&>(to_f16(x)), size);
  if (dtype == DType::kBF16) std::memcpy(element, &static_cast<const Bf16&>(to_bf16(x)), size);
  bytes.insert(bytes.end(), element, element + size);
}

// A file without a name, which is gone when nobody has it open any more.
std::shared_ptr<const File> memory_file(const std::vector<std::byte>& content) {
  const int fd = ::memfd_create("llm_boost_bench", MFD_CLOEXEC);
  if (fd < 0) throw BackendError(cat("cannot make a file in memory: ", std::strerror(errno)));
  std::size_t written = 0;
  while (written < content.size()) {
    const ssize_t got = ::write(fd, content.data() + written, content.size() - written);
    if (got <= 0) break;
    written += static_cast<std::size_t>(got);
  }
  if (written < content.size()) {
    ::close(fd);
    throw BackendError(cat("cannot write ", content.size(), " bytes of random weights: ", std::strerror(errno)));
  }
  auto file = std::make_shared<const File>(cat("/proc/self/fd/", fd));
  ::close(fd);
  return file;
}

// `bytes` bytes that run through `file` from `offset` on, and from its start again at its end.
std::vector<Segment> cycle(const std::shared_ptr<const File>& file, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<Segment> segments;
  for (; bytes > 0; offset = 0) {
    const std::uint64_t part = std::min(bytes, file->size() - offset);
    segments.push_back({file, offset, part});
    bytes -= part;
  }
  return segments;
}

}  // namespace

WeightTable random_weights(const ModelGraph& graph, DType dtype, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<std::byte> matrices;
  std::vector<std::byte> norms;
  for (std::int64_t i = 0; i < kElements; ++i) {
    const float x = normal(random);
    append(matrices, dtype, kDeviation * x);
    if (i < kElements / 64) append(norms, dtype, 1.0F + 0.1F * x);
  }
  const auto matrix_file = memory_file(matrices);
  const auto norm_file = memory_file(norms);
  WeightTable table;
  for (const WeightSpec& spec : expected_weights(graph)) {
    std::uint64_t bytes = size_bytes(dtype);
    for (const std::int64_t extent : spec.shape) bytes *= static_cast<std::uint64_t>(extent);
    const bool is_norm = spec.shape.size() == 1 && !spec.name.ends_with(".bias");
    const auto& file = is_norm ? norm_file : matrix_file;
    const std::uint64_t offset = random() % (file->size() / 64) * 64;
    table.add(StoredTensor(spec.name, dtype, spec.shape, cycle(file, offset, bytes)));
  }
  return table;
}

}  // namespace lb::bench
