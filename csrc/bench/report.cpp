#include "bench/report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "bench/commit.h"

namespace lb::bench {
namespace {

constexpr double kGiga = 1e9;

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm fields{};
  gmtime_r(&now, &fields);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &fields);
  return text;
}

// "AMD EPYC 9454", or "" where the system does not tell.
std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name") && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  }
  return "";
}

std::int64_t peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

std::string shape_of(const Result& result) {
  std::string text = result.name;
  for (const auto& [name, extent] : result.shape) text += cat(text.empty() ? "" : " ", name, " ", extent);
  return text;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::string hex(std::uint64_t bits) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(bits));
  return text;
}

// The distribution of amount / seconds; a fast sample is a high rate.
void write_rate(JsonWriter& json, std::string_view name, double amount, const std::vector<double>& seconds) {
  json.key(name);
  json.open('{');
  json.field("median", amount / quantile(seconds, 0.5));
  json.field("p10", amount / quantile(seconds, 0.9));
  json.field("p90", amount / quantile(seconds, 0.1));
  json.close('}');
}

}  // namespace

double quantile(std::vector<double> values, double q) {
  LB_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - std::floor(at)) * (values[above] - values[below]);
}

Report::Report(RunFacts facts, const Limits* limits, std::FILE* text)
    : facts_(std::move(facts)), limits_(limits), text_(text) {
  std::fprintf(text_, "llm_boost_bench %s, commit %s: %s, weights %s, activations %s\n", LLM_BOOST_VERSION,
               LLM_BOOST_COMMIT, facts_.backend.c_str(), facts_.dtype.c_str(), facts_.activation_dtype.c_str());
}

void Report::print_limits() const {
  if (limits_ == nullptr) return;
  std::fprintf(text_, "limits: read %.1f GB/s (%s), arithmetic %.1f GFLOP/s (%s)\n",
               limits_->bandwidth().best() / kGiga, limits_->bandwidth().probe.c_str(),
               limits_->arithmetic().best() / kGiga, limits_->arithmetic().probe.c_str());
  std::fflush(text_);
}

void Report::add(ModelFacts model) {
  std::fprintf(text_, "%s, %lld layers: weights %.3f GB, cache %.3f GB, arena %.3f GB, packed in %.2f s\n",
               model.name.c_str(), static_cast<long long>(model.num_layers),
               static_cast<double>(model.weight_bytes) / kGiga, static_cast<double>(model.cache_bytes) / kGiga,
               static_cast<double>(model.arena_bytes) / kGiga, model.load_seconds);
  std::fflush(text_);
  models_.push_back(std::move(model));
}

std::optional<double> Report::fraction(const Result& result) const {
  const bool has_floor = result.work.bytes > 0 || result.work.flops > 0;
  if (limits_ == nullptr || !has_floor) return std::nullopt;
  return limits_->best().seconds(result.work) / quantile(result.seconds, 0.5);
}

void Report::add(Result result) {
  const double median = quantile(result.seconds, 0.5);
  std::fprintf(text_, "%-9s %-52s %10.2f %s/s [%.2f %.2f] %7.2f GB/s %8.2f GFLOP/s", result.kind.c_str(),
               shape_of(result).c_str(), result.units / median, result.unit.c_str(),
               result.units / quantile(result.seconds, 0.9), result.units / quantile(result.seconds, 0.1),
               result.work.bytes / median / kGiga, result.work.flops / median / kGiga);
  if (const auto part = fraction(result))
    std::fprintf(text_, "  %.3f of the %s limit", *part,
                 limits_->best().bandwidth_bound(result.work) ? "bandwidth" : "arithmetic");
  if (result.fraction_beside) std::fprintf(text_, ", %.3f of it beside", *result.fraction_beside);
  if (result.logits_hash) std::fprintf(text_, "  logits %s", hex(*result.logits_hash).c_str());
  std::fprintf(text_, "\n");
  if (!result.ops.empty()) {
    std::fprintf(text_, "   ");
    for (const OpTime& op : result.ops)
      std::fprintf(text_, " %s %.1f%%", op.name.c_str(), 100 * op.seconds / mean(result.seconds));
    std::fprintf(text_, "\n");
  }
  std::fflush(text_);
  results_.push_back(std::move(result));
}

void Report::write_limits(JsonWriter& json) const {
  json.key("limits");
  json.open('{');
  for (const auto& [name, limit] :
       {std::pair{"bytes_per_second", &limits_->bandwidth()}, std::pair{"flops_per_second", &limits_->arithmetic()}}) {
    json.key(name);
    json.open('{');
    json.field("best", limit->best());
    json.field("median", quantile(limit->readings, 0.5));
    json.field("readings", static_cast<std::int64_t>(limit->readings.size()));
    json.field("probe", limit->probe);
    json.close('}');
  }
  json.close('}');
}

void Report::write(JsonWriter& json, const Result& result) const {
  const double median = quantile(result.seconds, 0.5);
  json.open('{');
  json.field("kind", result.kind);
  if (!result.name.empty()) json.field("model", result.name);
  json.key("shape");
  json.open('{');
  for (const auto& [name, extent] : result.shape) json.field(name, extent);
  json.close('}');
  json.field("samples", static_cast<std::int64_t>(result.seconds.size()));
  json.key("seconds");
  json.open('{');
  json.field("median", median);
  json.field("p10", quantile(result.seconds, 0.1));
  json.field("p90", quantile(result.seconds, 0.9));
  json.close('}');
  write_rate(json, result.unit + "_per_second", result.units, result.seconds);
  json.field("bytes", result.work.bytes);
  json.field("flops", result.work.flops);
  json.field("gb_per_second", result.work.bytes / median / kGiga);
  json.field("gflop_per_second", result.work.flops / median / kGiga);
  if (const auto part = fraction(result)) {
    json.field("fraction_of_limit", *part);
    json.field("limited_by", limits_->best().bandwidth_bound(result.work) ? "bandwidth" : "arithmetic");
  }
  if (result.fraction_beside) json.field("fraction_of_limit_beside", *result.fraction_beside);
  if (result.logits_hash) json.field("logits_hash", hex(*result.logits_hash));
  if (!result.ops.empty()) {
    json.key("ops");
    json.open('[');
    for (const OpTime& op : result.ops) {
      json.open('{');
      json.field("name", op.name);
      json.field("seconds", op.seconds);
      json.field("share", op.seconds / mean(result.seconds));
      json.close('}');
    }
    json.close(']');
  }
  json.close('}');
}

std::string Report::json() const {
  JsonWriter json;
  json.open('{');
  json.field("version", LLM_BOOST_VERSION);
  json.field("commit", LLM_BOOST_COMMIT);
  json.field("command", facts_.command);
  json.field("date", utc_now());
  json.field("cpu", cpu_model());
  json.field("backend", facts_.backend);
  json.field("isa", facts_.isa);
  json.field("threads", facts_.num_threads);
  json.field("dtype", facts_.dtype);
  json.field("activation_dtype", facts_.activation_dtype);
  json.field("peak_memory_bytes", peak_memory());
  if (limits_ != nullptr) write_limits(json);
  json.key("models");
  json.open('[');
  for (const ModelFacts& model : models_) {
    json.open('{');
    json.field("name", model.name);
    json.field("layers", model.num_layers);
    json.field("weight_bytes", model.weight_bytes);
    json.field("cache_bytes", model.cache_bytes);
    json.field("arena_bytes", model.arena_bytes);
    json.field("load_seconds", model.load_seconds);
    json.close('}');
  }
  json.close(']');
  json.key("results");
  json.open('[');
  for (const Result& result : results_) write(json, result);
  json.close(']');
  json.close('}');
  return json.text() + "\n";
}

}  // namespace lb::bench
