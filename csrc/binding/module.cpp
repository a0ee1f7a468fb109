// The Python face of the core: conversions, docstrings and GIL release, nothing else.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "binding/model_records.h"
#include "engine/load.h"
#include "model/model.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using IntArray = py::array_t<std::int32_t, py::array::c_style>;

std::span<const std::int32_t> as_span(const IntArray& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// A token mask from its bytes, little-endian words.
lb::TokenMask as_mask(const py::bytes& bytes) {
  const std::string_view view = bytes;
  lb::TokenMask mask(view.size() / sizeof(std::uint32_t));
  if (!mask.empty()) std::memcpy(mask.data(), view.data(), mask.size() * sizeof(std::uint32_t));
  return mask;
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
      .def_property_readonly("queue_seconds", [](const Item& item) { return item.event.queue_seconds; })
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
             std::shared_ptr<lb::OutputQueue> queue, const py::bytes& mask) {
            lb::TokenMask words = as_mask(mask);
            const py::gil_scoped_release release;
            return model.loop().submit(std::move(prompt), std::move(params), std::move(queue), std::move(words));
          },
          "prompt"_a, "params"_a, "queue"_a, "mask"_a = py::bytes(),
          "Queues a request and returns its id. With a mask of its first token, a bit a token, each further token of a "
          "sample waits for set_token_mask(). Raises RequestError.")
      .def(
          "set_token_mask",
          [](LoadedModel& model, lb::RequestId id, std::int32_t sample, const py::bytes& mask) {
            model.loop().set_token_mask(id, sample, as_mask(mask));
          },
          "request"_a, "sample"_a, "mask"_a, "Gives the mask of a sample's next token. Raises RequestError.")
      .def(
          "cancel",
          [](LoadedModel& model, lb::RequestId id, std::optional<std::int32_t> sample) {
            model.loop().cancel(id, sample);
          },
          "request"_a, "sample"_a = py::none(), py::call_guard<py::gil_scoped_release>(),
          "Ends a request, or one sample of it that has given a token; their last events still come.")
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

void bind_host(py::module_& m);  // host.cpp

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of llm_boost. Use the llm_boost package instead.";
  m.attr("__version__") = LLM_BOOST_VERSION;
  py::register_exception_translator(&translate);
  lb::bind_model_records(m);
  bind_requests(m);
  bind_model(m);
  bind_host(m);
}
