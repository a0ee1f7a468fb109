#include "bench/options.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "bench/kernel_cases.h"
#include "bench/presets.h"

namespace lb::bench {
namespace {

std::int64_t parse_number(std::string_view text, std::string_view what, std::int64_t minimum) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < minimum || value > std::int64_t{1} << 30)
    throw ConfigError(cat(what, " is '", text, "', expected a number from ", minimum, " to ", std::int64_t{1} << 30));
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// "128x128x1,512x1x1"
std::vector<std::vector<std::int64_t>> parse_shapes(std::string_view text, std::string_view what,
                                                    std::int64_t minimum) {
  std::vector<std::vector<std::int64_t>> shapes;
  for (const std::string_view shape : split(text, ',')) {
    std::vector<std::int64_t>& extents = shapes.emplace_back();
    for (const std::string_view extent : split(shape, 'x')) extents.push_back(parse_number(extent, what, minimum));
  }
  return shapes;
}

std::vector<Workload> parse_workloads(std::string_view text) {
  std::vector<Workload> workloads;
  for (const std::vector<std::int64_t>& shape : parse_shapes(text, "--workloads", 1)) {
    if (shape.size() != 3) throw ConfigError(cat("--workloads is '", text, "', expected PROMPTxGENERATExBATCH,..."));
    workloads.push_back({shape[0], shape[1], shape[2]});
  }
  return workloads;
}

struct Flag {
  std::string_view name;
  std::string_view value;  // its name in the help text; "": the flag has none
  std::string_view help;
  std::function<void(Options&, std::string_view)> set;
};

const std::vector<Flag>& flags() {
  static const std::vector<Flag> all = {
      {"--workloads", "PxGxB,...",
       "prompt and generated tokens, and sequences (128x128x1,512x1x1,2048x1x1,128x32x8,128x32x32)",
       [](Options& o, std::string_view v) { o.workloads = parse_workloads(v); }},
      {"--layers", "N", "only so many layers of a model",
       [](Options& o, std::string_view v) { o.num_layers = parse_number(v, "--layers", 1); }},
      {"--shapes", "AxB,...", "shapes of the one kernel that is named",
       [](Options& o, std::string_view v) { o.shapes = parse_shapes(v, "--shapes", 0); }},
      {"--dtype", "NAME", "of weights: bfloat16 (default), float16, float32",
       [](Options& o, std::string_view v) { o.dtype = parse_dtype(v, "--dtype"); }},
      {"--activation-dtype", "NAME", "bfloat16 (default) or float32",
       [](Options& o, std::string_view v) { o.activation_dtype = parse_dtype(v, "--activation-dtype"); }},
      {"--backend", "NAME", "what to run on (cpu)", [](Options& o, std::string_view v) { o.backend = v; }},
      {"--threads", "N", "default: what affinity and CPU quota allow",
       [](Options& o, std::string_view v) { o.num_threads = static_cast<int>(parse_number(v, "--threads", 1)); }},
      {"--max-num-batched-tokens", "N", "most tokens of a step (512)",
       [](Options& o, std::string_view v) {
         o.max_num_batched_tokens = parse_number(v, "--max-num-batched-tokens", 1);
       }},
      {"--repeat", "N", "measured repetitions of a workload, after an unmeasured one (3)",
       [](Options& o, std::string_view v) { o.repeat = static_cast<int>(parse_number(v, "--repeat", 1)); }},
      {"--no-ops", "", "do not measure single ops", [](Options& o, std::string_view) { o.time_ops = false; }},
      {"--seed", "N", "of weights and prompts (1)",
       [](Options& o, std::string_view v) { o.seed = static_cast<std::uint64_t>(parse_number(v, "--seed", 0)); }},
      {"--probe-mib", "N", "memory that the bandwidth probe reads (1024)",
       [](Options& o, std::string_view v) {
         o.probe_bytes = static_cast<std::size_t>(parse_number(v, "--probe-mib", 1)) << 20;
       }},
      {"--json", "FILE", "write the results there too; - for standard output instead of text",
       [](Options& o, std::string_view v) { o.json_path = v; }},
  };
  return all;
}

template <class Names>
std::string join(const Names& names) {
  std::string text;
  for (const auto& each : names) text += cat(text.empty() ? "" : ", ", each);
  return text;
}

// The value of flag number `at`, which may be "--flag=value" or "--flag value".
std::string_view take_value(const Flag& flag, std::span<const char* const> arguments, std::size_t& at) {
  const std::string_view word = arguments[at];
  const std::size_t equals = word.find('=');
  if (flag.value.empty()) {
    if (equals != std::string_view::npos) throw ConfigError(cat(flag.name, " takes no value"));
    return {};
  }
  if (equals != std::string_view::npos) return word.substr(equals + 1);
  if (++at == arguments.size()) throw ConfigError(cat(flag.name, " needs a value: ", flag.value));
  return arguments[at];
}

void set_mode(Options& options, const std::vector<std::string>& words) {
  if (words.empty()) return;
  options.names = words;
  options.mode = Mode::kModels;
  if (words.front() == "limits" || words.front() == "kernels") {
    options.mode = words.front() == "limits" ? Mode::kLimits : Mode::kKernels;
    options.names.erase(options.names.begin());
  }
  if (options.mode == Mode::kLimits && !options.names.empty())
    throw ConfigError(cat("'limits' takes no name, found '", options.names.front(), "'"));
  if (options.mode == Mode::kModels) {
    for (const std::string& name : options.names) preset(name, 0, 1);  // throws
  }
  if (!options.shapes.empty() && (options.mode != Mode::kKernels || options.names.size() != 1))
    throw ConfigError("--shapes belongs to one kernel: llm_boost_bench kernels NAME --shapes ...");
  if (options.mode == Mode::kKernels) {
    for (const std::string& name : options.names) kernel_shape(name);  // throws
    for (const Shape& shape : options.shapes) check_shape(options.names.front(), shape);
  }
}

}  // namespace

Options parse_options(std::span<const char* const> arguments) {
  Options options;
  std::vector<std::string> words;
  for (std::size_t at = 0; at < arguments.size(); ++at) {
    const std::string_view word = arguments[at];
    if (word == "--help" || word == "-h") return {};
    if (!word.starts_with('-')) {
      words.emplace_back(word);
      continue;
    }
    const std::string_view name = word.substr(0, word.find('='));
    const auto flag = std::find_if(flags().begin(), flags().end(), [&](const Flag& f) { return f.name == name; });
    if (flag == flags().end()) {
      std::vector<std::string_view> known;
      for (const Flag& each : flags()) known.push_back(each.name);
      throw ConfigError(cat("there is no option '", name, "'; there are ", join(known)));
    }
    flag->set(options, take_value(*flag, arguments, at));
  }
  set_mode(options, words);
  return options;
}

std::string help_text() {
  std::string text = cat("llm_boost_bench PRESET...        whole models with random weights: ", join(preset_names()),
                         "\nllm_boost_bench kernels [NAME...] single kernels: ", join(kernel_names()),
                         "\nllm_boost_bench limits           what the machine can do\n\n");
  for (const Flag& flag : flags()) {
    const std::string left = cat("  ", flag.name, " ", flag.value);
    text += cat(left, std::string(left.size() < 30 ? 30 - left.size() : 1, ' '), flag.help, "\n");
  }
  text += "\nShapes of kernels:\n";
  for (const std::string& name : kernel_names())
    text += cat("  ", name, std::string(12 - name.size(), ' '), kernel_shape(name), "\n");
  return text;
}

}  // namespace lb::bench
