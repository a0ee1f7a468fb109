// Results: what was measured, how it compares with the machine's limits, as text and as JSON.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/floor.h"
#include "bench/json.h"
#include "bench/limits.h"

namespace lb::bench {

struct OpTime {
  std::string name;
  double seconds = 0;  // of a sample, on average
};

struct Result {
  std::string kind;  // "prefill", "decode", or a kernel
  std::string name;  // of the preset; "" for a kernel
  std::vector<std::pair<std::string, std::int64_t>> shape;
  std::string unit;             // what `units` counts
  double units = 0;             // of a sample
  Work work;                    // of a sample
  std::vector<double> seconds;  // of each sample
  std::vector<OpTime> ops;
  std::optional<std::uint64_t> logits_hash;
  // Of the limit with the bandwidth as it was just before and after, the median over stretches of samples.
  std::optional<double> fraction_beside;
};

// A quantile of `values`, which must not be empty: 0.5 is the median.
double quantile(std::vector<double> values, double q);

// What the results of a run have in common.
struct RunFacts {
  std::string command;
  std::string backend;
  std::string isa;
  std::int64_t num_threads = 0;
  std::string dtype;
  std::string activation_dtype;
};

// A compiled model's cost.
struct ModelFacts {
  std::string name;
  std::int64_t num_layers = 0;
  std::int64_t weight_bytes = 0;
  std::int64_t cache_bytes = 0;
  std::int64_t arena_bytes = 0;
  double load_seconds = 0;  // reading from memory and packing
};

// Prints each result to `text` as it comes, and gives all of them as JSON in the end. `limits` may be null: then
// nothing is compared with them. It must outlive the report.
class Report {
 public:
  Report(RunFacts facts, const Limits* limits, std::FILE* text);

  void add(ModelFacts model);
  void add(Result result);
  void print_limits() const;
  std::string json() const;

 private:
  std::optional<double> fraction(const Result& result) const;
  void write_limits(JsonWriter& json) const;
  void write(JsonWriter& json, const Result& result) const;

  const RunFacts facts_;
  const Limits* limits_;
  std::FILE* const text_;
  std::vector<ModelFacts> models_;
  std::vector<Result> results_;
};

}  // namespace lb::bench
