// llm_boost_bench: how fast the core computes, as fractions of what the machine can do. See --help.
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "backend/cpu/isa.h"
#include "backend/cpu/program.h"
#include "base/error.h"
#include "base/host.h"
#include "bench/kernel_bench.h"
#include "bench/limits.h"
#include "bench/model_bench.h"
#include "bench/options.h"
#include "bench/report.h"

namespace {

using namespace lb;
using namespace lb::bench;

std::string command_line(std::span<const char* const> words) {
  std::string text;
  for (const char* word : words) text += cat(text.empty() ? "" : " ", word);
  return text;
}

void write_json(const Options& options, const Report& report) {
  if (options.json_path.empty()) return;
  if (options.json_path == "-") {
    std::fputs(report.json().c_str(), stdout);
    return;
  }
  std::ofstream file(options.json_path);
  file << report.json();
  file.close();
  if (!file) throw ConfigError(cat(options.json_path, ": cannot be written"));
}

void run(const Options& options, std::string command) {
  ThreadPool pool(options.num_threads > 0 ? options.num_threads : usable_threads());
  const std::unique_ptr<Backend> backend = make_backend(options.backend, pool, {});
  const cpu::Kernels& kernels = cpu::select_kernels();
  const cpu::Operand operand = cpu::choose_operand(kernels, options.activation_dtype, options.dtype == DType::kBF16);
  std::optional<Limits> limits;  // of the host: they say nothing about another device
  if (options.backend == "cpu" || options.mode != Mode::kModels)
    limits.emplace(pool, kernels, operand, options.probe_bytes);
  Report report({.command = std::move(command),
                 .backend = backend->capabilities().description,
                 .isa = kernels.name,
                 .num_threads = pool.size(),
                 .dtype = std::string(name(options.dtype)),
                 .activation_dtype = std::string(name(options.activation_dtype))},
                limits ? &*limits : nullptr, options.json_path == "-" ? stderr : stdout);
  report.print_limits();
  if (options.mode == Mode::kKernels)
    bench_kernels(options, {pool, kernels, options.dtype, options.activation_dtype, operand}, report);
  if (options.mode == Mode::kModels) {
    for (const std::string& preset : options.names)
      bench_model(preset, options, *backend, pool, limits ? &*limits : nullptr, report);
    report.print_limits();
  }
  write_json(options, report);
}

}  // namespace

int main(int argc, char** argv) {
  const std::span<const char* const> words(argv, static_cast<std::size_t>(argc));
  try {
    const Options options = parse_options(words.subspan(1));
    if (options.mode == Mode::kHelp) {
      std::fputs(help_text().c_str(), stdout);
      return 0;
    }
    run(options, command_line(words));
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "llm_boost_bench: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llm_boost_bench: %s\n", error.what());
    return 1;
  }
}
