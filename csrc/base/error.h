// Typed errors. Every message says where, what was expected, what was found, and the remedy.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lb {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bad model config, option or environment variable.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// A weight file that is damaged, unsafe, or does not hold what the model needs.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

// A prompt, sampling parameter or step batch that cannot be served.
class RequestError : public Error {
 public:
  using Error::Error;
};

// A backend that is unavailable, or failed while it ran.
class BackendError : public Error {
 public:
  using Error::Error;
};

// A broken invariant: a bug in this library.
class InternalError : public Error {
 public:
  using Error::Error;
};

// Concatenates the streamed form of its arguments: cat("got ", 3) == "got 3".
template <class... Args>
std::string cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

[[noreturn]] void fail_check(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace lb

// Throws InternalError when `condition` is false; active in every build. The arguments after it are concatenated into
// the message, and evaluated only then.
#define LB_CHECK(condition, ...)                                                                                  \
  do {                                                                                                            \
    if (!(condition)) ::lb::fail_check(__FILE__, __LINE__, #condition, ::lb::cat("" __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)
