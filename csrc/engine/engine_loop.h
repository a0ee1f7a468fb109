// The engine on a thread of its own, for callers on any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"

namespace lb {

// Where the events of some requests go: one producer (the engine's thread), any number of consumers.
class OutputQueue {
 public:
  // An event with its log probabilities, which StepOutput keeps apart.
  struct Item {
    TokenEvent event;
    std::vector<TokenLogprob> logprobs;
  };

  // Waits until there is something, at most `timeout`; gives everything there is, in order, possibly nothing. Throws
  // the engine's error when it failed while requests of this queue were being served.
  std::vector<Item> pop(std::chrono::milliseconds timeout);

 private:
  friend class EngineLoop;
  void push(const TokenEvent& event, const StepOutput& output);
  void fail(std::exception_ptr error);

  std::mutex mutex_;
  std::condition_variable filled_;
  std::vector<Item> items_;
  std::exception_ptr error_;
};

// Owns the thread pool, the backend and the engine, and drives the engine as long as there is work. All methods may be
// called from any thread; what they ask for is done by the engine's thread between two steps, in order.
class EngineLoop {
 public:
  // `make_engine` runs on the engine's thread, so that the thread which drives the engine is the one that made it.
  explicit EngineLoop(const std::function<std::unique_ptr<Engine>()>& make_engine);
  ~EngineLoop();  // cancels everything

  // Queues a request whose events go to `queue`, and returns its id. Throws RequestError when it cannot be served.
  RequestId submit(std::vector<std::int32_t> prompt, SamplingParams params, std::shared_ptr<OutputQueue> queue,
                   TokenMask mask = {});
  // Gives the mask of the next token of a sample whose request was submitted with one. Throws RequestError for a mask
  // that allows nothing.
  void set_token_mask(RequestId id, std::int32_t sample, TokenMask mask);
  // Ends a request, one sample of it (see Engine::cancel()), or all requests of a queue. Their last events still come.
  void cancel(RequestId id, std::optional<std::int32_t> sample = {});
  void cancel_all(std::shared_ptr<OutputQueue> queue);
  // Runs one batch of the caller's own scheduling; see Engine::forward().
  void forward(const StepBatch& batch, std::span<float> logits);
  EngineStats stats();

  const Engine& engine() const { return *engine_; }

 private:
  using Command = std::function<void()>;

  void run();
  // Of a command that changes what is computed, processes that share a model must all have one before any runs it.
  enum class Scope : std::uint8_t { kShared, kLocal };
  void post(Command command, Scope scope = Scope::kShared);
  // Waits until it is done; passes its exception on.
  void call(const Command& command, Scope scope = Scope::kShared);
  void dispatch(const StepOutput& output);
  void fail_clients(std::exception_ptr error);
  void run_commands(std::vector<Command>& shared, bool busy);

  std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Command> commands_;
  std::vector<Command> local_commands_;
  bool stopping_ = false;
  RequestId last_id_ = 0;

  // Of the engine's thread only.
  struct Client {
    std::shared_ptr<OutputQueue> queue;
    std::int32_t unfinished = 0;  // samples
  };
  std::unordered_map<RequestId, Client> clients_;

  std::thread thread_;
};

}  // namespace lb
