#include "backend/atb/ranks.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace lb::npu {
namespace {

std::int64_t number(const char* variable, const char* text) {
  const std::string_view digits(text);
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), value);
  if (error != std::errc() || end != digits.end() || value < 0)
    throw ConfigError(cat("environment variable ", variable, " is '", text, "', expected a whole number"));
  return value;
}

}  // namespace

Ranks ranks_from_environment() {
  constexpr const char* kPairs[][2] = {{"RANK_ID", "RANK_SIZE"}, {"RANK", "WORLD_SIZE"}};
  for (const auto& [rank_name, size_name] : kPairs) {
    const char* rank_text = std::getenv(rank_name);
    const char* size_text = std::getenv(size_name);
    if (rank_text == nullptr && size_text == nullptr) continue;
    if (rank_text == nullptr || size_text == nullptr) {
      throw ConfigError(cat("environment variable ", rank_text == nullptr ? rank_name : size_name, " is not set, but ",
                            rank_text == nullptr ? size_name : rank_name, " is; a launcher sets both"));
    }
    const Ranks ranks{number(rank_name, rank_text), number(size_name, size_text)};
    if (ranks.rank >= ranks.size) {
      throw ConfigError(cat("environment variable ", rank_name, " is ", ranks.rank, ", expected less than ", size_name,
                            ", which is ", ranks.size));
    }
    return ranks;
  }
  return {};
}

}  // namespace lb::npu
