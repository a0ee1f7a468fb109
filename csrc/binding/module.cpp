// The Python face of the core: conversions, docstrings and GIL release, nothing else.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cpu/isa.h"
#include "base/error.h"
#include "base/host.h"
#include "engine/load.h"
#include "model/model.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using IntArray = py::array_t<std::int32_t, py::array::c_style>;
using Segments = std::vector<std::tuple<std::string, std::uint64_t, std::uint64_t>>;

std::span<const std::int32_t> as_span(const IntArray& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// Raises the class of llm_boost.errors that has the same name as the C++ type.
void translate(std::exception_ptr pointer) {
  const auto raise = [](const char* type, const std::exception& error) {
    py::set_error(py::module_::import("llm_boost.errors").attr(type), error.what());
  };
  try {
    std::rethrow_exception(pointer);
  } catch (const lb::ConfigError& error) {
    raise("ConfigError", error);
  } catch (const lb::CheckpointError& error) {
    raise("CheckpointError", error);
  } catch (const lb::RequestError& error) {
    raise("RequestError", error);
  } catch (const lb::BackendError& error) {
    raise("BackendError", error);
  } catch (const lb::InternalError& error) {
    raise("InternalError", error);
  }
}

void bind_config(py::module_& m) {
  using lb::ModelConfig;
  py::class_<ModelConfig>(m, "ModelConfig", "Shape and numeric settings of a model; see csrc/model/config.h.")
      .def(py::init<>())
      .def_readwrite("architecture", &ModelConfig::architecture)
      .def_readwrite("hidden_size", &ModelConfig::hidden_size)
      .def_readwrite("intermediate_size", &ModelConfig::intermediate_size)
      .def_readwrite("num_layers", &ModelConfig::num_layers)
      .def_readwrite("num_heads", &ModelConfig::num_heads)
      .def_readwrite("num_kv_heads", &ModelConfig::num_kv_heads)
      .def_readwrite("head_dim", &ModelConfig::head_dim)
      .def_readwrite("vocab_size", &ModelConfig::vocab_size)
      .def_readwrite("max_positions", &ModelConfig::max_positions)
      .def_readwrite("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readwrite("qkv_bias", &ModelConfig::qkv_bias)
      .def_readwrite("output_bias", &ModelConfig::output_bias)
      .def_readwrite("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def_readwrite("rope_inv_freq", &ModelConfig::rope_inv_freq)
      .def_readwrite("rope_position_scale", &ModelConfig::rope_position_scale)
      .def_readwrite("rope_amplitude", &ModelConfig::rope_amplitude)
      .def_property(
          "rope_dtype", [](const ModelConfig& config) { return lb::name(config.rope_dtype); },
          [](ModelConfig& config, std::string_view dtype) {
            config.rope_dtype = lb::parse_dtype(dtype, "rope_dtype");
          });
  m.def("architecture_names", &lb::architecture_names, "Architectures that can be built.");
  m.def(
      "expected_weights",
      [](const ModelConfig& config) {
        std::vector<std::pair<std::string, std::vector<std::int64_t>>> weights;
        for (lb::WeightSpec& spec : lb::expected_weights(lb::build_model(config)))
          weights.emplace_back(spec.name, spec.shape);
        return weights;
      },
      "config"_a, "Canonical names and shapes of all weights of a model. Raises ConfigError.");
  m.def(
      "graph_text",
      [](const ModelConfig& config) {
        const lb::ModelGraph graph = lb::build_model(config);
        return to_string(graph.embed) + to_string(graph.layer) + to_string(graph.head);
      },
      "config"_a, "The model's graphs, one line a node. Raises ConfigError.");
}

void bind_weights(py::module_& m) {
  py::class_<lb::WeightTable>(m, "WeightTable", "Where each canonical weight of a model is stored.")
      .def(py::init<>())
      .def(
          "add",
          [](lb::WeightTable& table, std::string name, std::string_view dtype, std::vector<std::int64_t> shape,
             const Segments& segments) {
            std::vector<lb::Segment> parts;
            std::shared_ptr<const lb::File> file;
            for (const auto& [path, offset, bytes] : segments) {
              if (file == nullptr || file->path() != path) file = table.open(path);
              parts.push_back({file, offset, bytes});
            }
            table.add(
                lb::StoredTensor(std::move(name), lb::parse_dtype(dtype, "dtype"), std::move(shape), std::move(parts)));
          },
          "name"_a, "dtype"_a, "shape"_a, "segments"_a,
          "Adds a row-major tensor: the segments (path, offset, bytes) in order. Raises "
          "CheckpointError.");
}

void bind_requests(py::module_& m) {
  using lb::SamplingParams;
  py::class_<SamplingParams>(m, "SamplingParams", "See llm_boost.SamplingParams.")
      .def(py::init<>())
      .def_readwrite("n", &SamplingParams::n)
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("ignore_eos", &SamplingParams::ignore_eos)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("logprobs", &SamplingParams::logprobs)
      .def_readwrite("prompt_logprobs", &SamplingParams::prompt_logprobs);
  using Item = lb::OutputQueue::Item;
  py::class_<Item>(m, "TokenEvent", "One new token, a token of the prompt with its logprobs, or the end of a sample.")
      .def_property_readonly("request", [](const Item& item) { return item.event.request; })
      .def_property_readonly("sample", [](const Item& item) { return item.event.sample; })
      .def_property_readonly("token", [](const Item& item) { return item.event.token; })
      .def_property_readonly("prompt_position", [](const Item& item) { return item.event.prompt_position; })
      .def_property_readonly("finish_reason", [](const Item& item) { return lb::to_string(item.event.finish); })
      .def_property_readonly("stop_token", [](const Item& item) { return item.event.stop_token; })
      .def_property_readonly("num_cached_tokens", [](const Item& item) { return item.event.num_cached_tokens; })
      .def_property_readonly("logprobs", [](const Item& item) {
        std::vector<std::tuple<std::int32_t, float, std::int32_t>> list;  // (token, logprob, rank)
        for (const lb::TokenLogprob& l : item.logprobs) list.emplace_back(l.token, l.logprob, l.rank);
        return list;
      });
  py::class_<lb::OutputQueue, std::shared_ptr<lb::OutputQueue>>(m, "OutputQueue",
                                                                "Where the events of some requests go.")
      .def(py::init<>())
      .def(
          "pop",
          [](lb::OutputQueue& queue, int timeout_ms) { return queue.pop(std::chrono::milliseconds(timeout_ms)); },
          "timeout_ms"_a, py::call_guard<py::gil_scoped_release>(),
          "Waits for events; gives all there are, possibly none after the timeout.");
}

// All public members of plain records of numbers and strings.
py::dict to_dict(const lb::EngineInfo& info) {
  return py::dict("backend"_a = info.backend, "isa"_a = info.isa, "activation_dtype"_a = info.activation_dtype,
                  "num_threads"_a = info.num_threads, "block_size"_a = info.block_size,
                  "num_blocks"_a = info.num_blocks, "max_num_seqs"_a = info.max_num_seqs,
                  "max_model_len"_a = info.max_model_len, "max_num_batched_tokens"_a = info.max_num_batched_tokens,
                  "weight_bytes"_a = info.memory.weights, "cache_bytes"_a = info.memory.cache,
                  "arena_bytes"_a = info.memory.arena);
}

py::dict to_dict(const lb::EngineStats& stats) {
  return py::dict("num_running"_a = stats.num_running, "num_waiting"_a = stats.num_waiting,
                  "num_blocks"_a = stats.num_blocks, "num_free_blocks"_a = stats.num_free_blocks,
                  "num_preemptions"_a = stats.num_preemptions, "prefix_queries"_a = stats.prefix_queries,
                  "prefix_hits"_a = stats.prefix_hits, "prompt_tokens"_a = stats.prompt_tokens,
                  "output_tokens"_a = stats.output_tokens, "num_steps"_a = stats.num_steps);
}

py::array_t<float> forward(lb::LoadedModel& model, const IntArray& token_ids, const IntArray& positions,
                           const IntArray& slots, const IntArray& seq_begin, const IntArray& context_len,
                           const IntArray& block_table, const IntArray& logit_rows) {
  const lb::StepBatch batch{as_span(token_ids),   as_span(positions),   as_span(slots),     as_span(seq_begin),
                            as_span(context_len), as_span(block_table), as_span(logit_rows)};
  py::array_t<float> logits({logit_rows.size(), static_cast<py::ssize_t>(model.loop().engine().limits().vocab_size)});
  const std::span<float> target(logits.mutable_data(), static_cast<std::size_t>(logits.size()));
  const py::gil_scoped_release release;
  model.loop().forward(batch, target);
  return logits;
}

void bind_model(py::module_& m) {
  using lb::EngineOptions;
  using lb::LoadedModel;
  py::class_<EngineOptions>(m, "EngineOptions",
                            "What a user may choose about a loaded model, with its defaults; see csrc/engine/load.h.")
      .def(py::init<>())
      .def_readwrite("backend", &EngineOptions::backend)
      .def_readwrite("dtype", &EngineOptions::dtype)
      .def_readwrite("activation_dtype", &EngineOptions::activation_dtype)
      .def_readwrite("num_threads", &EngineOptions::num_threads)
      .def_readwrite("block_size", &EngineOptions::block_size)
      .def_readwrite("num_blocks", &EngineOptions::num_blocks)
      .def_readwrite("max_num_seqs", &EngineOptions::max_num_seqs)
      .def_readwrite("max_model_len", &EngineOptions::max_model_len)
      .def_readwrite("max_num_batched_tokens", &EngineOptions::max_num_batched_tokens)
      .def_readwrite("enable_prefix_caching", &EngineOptions::enable_prefix_caching)
      .def_readwrite("time_steps", &EngineOptions::time_steps)
      .def_property(
          "device_id", [](const EngineOptions& options) { return options.device.device_id; },
          [](EngineOptions& options, std::int32_t id) { options.device.device_id = id; })
      .def_property(
          "need_nz", [](const EngineOptions& options) { return options.device.need_nz; },
          [](EngineOptions& options, std::optional<bool> need) { options.device.need_nz = need; })
      .def_property(
          "communication_backend", [](const EngineOptions& options) { return options.device.communication_backend; },
          [](EngineOptions& options, std::string name) { options.device.communication_backend = std::move(name); })
      .def_readwrite("eos_token_ids", &EngineOptions::eos_token_ids)
      .def_readwrite("on_progress", &EngineOptions::on_progress);
  py::class_<LoadedModel>(m, "LoadedModel", "A model that is ready to serve.",
                          py::release_gil_before_calling_cpp_dtor())
      .def(py::init<const lb::ModelConfig&, const lb::WeightTable&, const EngineOptions&>(), "config"_a, "weights"_a,
           "options"_a, py::call_guard<py::gil_scoped_release>(),
           "Raises ConfigError, CheckpointError or BackendError.")
      .def(
          "check",
          [](LoadedModel& model, std::vector<std::int32_t> prompt, lb::SamplingParams params) {
            model.loop().engine().check({0, std::move(prompt), std::move(params)});
          },
          "prompt"_a, "params"_a, "Raises RequestError unless submit() would take the request.")
      .def(
          "submit",
          [](LoadedModel& model, std::vector<std::int32_t> prompt, lb::SamplingParams params,
             std::shared_ptr<lb::OutputQueue> queue) {
            return model.loop().submit(std::move(prompt), std::move(params), std::move(queue));
          },
          "prompt"_a, "params"_a, "queue"_a, py::call_guard<py::gil_scoped_release>(),
          "Queues a request and returns its id. Raises RequestError.")
      .def(
          "cancel", [](LoadedModel& model, lb::RequestId id) { model.loop().cancel(id); }, "request"_a,
          py::call_guard<py::gil_scoped_release>(), "Ends a request; its last events still come.")
      .def(
          "cancel_all",
          [](LoadedModel& model, std::shared_ptr<lb::OutputQueue> queue) { model.loop().cancel_all(std::move(queue)); },
          "queue"_a, py::call_guard<py::gil_scoped_release>(), "Ends all requests of a queue.")
      .def("forward", &forward, "token_ids"_a, "positions"_a, "slots"_a, "seq_begin"_a, "context_len"_a,
           "block_table"_a, "logit_rows"_a, "Runs one step batch; see llm_boost.Model.forward. Raises RequestError.")
      .def("info", [](const LoadedModel& model) { return to_dict(model.info()); })
      .def("stats", [](LoadedModel& model) {
        lb::EngineStats stats;
        {
          const py::gil_scoped_release release;
          stats = model.loop().stats();
        }
        return to_dict(stats);
      });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of llm_boost. Use the llm_boost package instead.";
  m.attr("__version__") = LLM_BOOST_VERSION;
  py::register_exception_translator(&translate);
  bind_config(m);
  bind_weights(m);
  bind_requests(m);
  bind_model(m);
  m.def("backend_names", &lb::backend_names, "Backends of this build, the best first.");
  m.def(
      "usable_threads", [] { return lb::usable_threads(); }, "Threads that the affinity mask and the CPU quota allow.");
  m.def(
      "isa_levels",
      [] {
        std::vector<std::string> names;
        for (const lb::cpu::Kernels* kernels : lb::cpu::available_kernels()) names.emplace_back(kernels->name);
        return names;
      },
      "Instruction set levels of this machine, best first.");
}
