// Writes JSON, two spaces a level.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lb::bench {

class JsonWriter {
 public:
  void open(char bracket);  // '{' or '['
  void close(char bracket);
  void key(std::string_view name);
  void value(std::string_view text);
  void value(const char* text) { value(std::string_view(text)); }
  void value(double number);  // 6 significant digits; null unless finite
  void value(std::int64_t number);
  void value(bool truth);

  template <class T>
  void field(std::string_view name, const T& content) {
    key(name);
    value(content);
  }

  const std::string& text() const { return text_; }

 private:
  void begin_item();

  std::string text_;
  int depth_ = 0;
  bool first_ = true;  // of its object or array
  bool after_key_ = false;
};

}  // namespace lb::bench
