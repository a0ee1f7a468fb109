#include "bench/json.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace lb::bench {

void JsonWriter::begin_item() {
  if (after_key_) {
    after_key_ = false;
    return;
  }
  if (depth_ == 0) return;
  if (!first_) text_ += ',';
  first_ = false;
  text_ += '\n';
  text_.append(static_cast<std::size_t>(2 * depth_), ' ');
}

void JsonWriter::open(char bracket) {
  begin_item();
  text_ += bracket;
  ++depth_;
  first_ = true;
}

void JsonWriter::close(char bracket) {
  --depth_;
  if (!first_) {
    text_ += '\n';
    text_.append(static_cast<std::size_t>(2 * depth_), ' ');
  }
  text_ += bracket;
  first_ = false;
}

void JsonWriter::key(std::string_view name) {
  value(name);
  text_ += ": ";
  after_key_ = true;
}

void JsonWriter::value(std::string_view text) {
  begin_item();
  text_ += '"';
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> escaped{};
      std::snprintf(escaped.data(), escaped.size(), "\\u%04x", static_cast<unsigned>(c));
      text_ += escaped.data();
      continue;
    }
    if (c == '"' || c == '\\') text_ += '\\';
    text_ += c;
  }
  text_ += '"';
}

void JsonWriter::value(double number) {
  begin_item();
  if (!std::isfinite(number)) {
    text_ += "null";
    return;
  }
  std::array<char, 32> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number, std::chars_format::general, 6);
  text_.append(digits.data(), end.ptr);
}

void JsonWriter::value(std::int64_t number) {
  begin_item();
  text_ += std::to_string(number);
}

void JsonWriter::value(bool truth) {
  begin_item();
  text_ += truth ? "true" : "false";
}

}  // namespace lb::bench
