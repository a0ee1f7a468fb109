#include "engine/engine_loop.h"

#include <iterator>
#include <utility>

#include "base/error.h"

namespace lb {

std::vector<OutputQueue::Item> OutputQueue::pop(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  filled_.wait_for(lock, timeout, [this] { return !items_.empty() || error_ != nullptr; });
  if (items_.empty() && error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
  return std::exchange(items_, {});
}

void OutputQueue::push(const TokenEvent& event, const StepOutput& output) {
  const auto begin = output.logprobs.begin();
  {
    const std::lock_guard lock(mutex_);
    items_.push_back({event, {begin + event.logprob_begin, begin + event.logprob_end}});
  }
  filled_.notify_all();
}

void OutputQueue::fail(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
  }
  filled_.notify_all();
}

EngineLoop::EngineLoop(const std::function<std::unique_ptr<Engine>()>& make_engine) {
  std::promise<void> ready;
  thread_ = std::thread([&, this] {
    try {
      engine_ = make_engine();
    } catch (...) {
      ready.set_exception(std::current_exception());
      return;
    }
    ready.set_value();
    run();
  });
  try {
    ready.get_future().get();
  } catch (...) {
    thread_.join();
    throw;
  }
}

EngineLoop::~EngineLoop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void EngineLoop::post(Command command, Scope scope) {
  {
    const std::lock_guard lock(mutex_);
    (scope == Scope::kShared ? commands_ : local_commands_).push_back(std::move(command));
  }
  wake_.notify_one();
}

void EngineLoop::call(const Command& command, Scope scope) {
  std::promise<void> done;
  const auto report = [&] {
    try {
      command();
      done.set_value();
    } catch (...) {
      done.set_exception(std::current_exception());
    }
  };
  post(report, scope);
  done.get_future().get();
}

RequestId EngineLoop::submit(std::vector<std::int32_t> prompt, SamplingParams params,
                             std::shared_ptr<OutputQueue> queue, TokenMask mask) {
  Request request{0, std::move(prompt), std::move(params), std::move(mask)};
  engine_->check(request);
  {
    const std::lock_guard lock(mutex_);
    request.id = ++last_id_;
  }
  const RequestId id = request.id;
  post([this, request = std::move(request), queue = std::move(queue)]() mutable {
    clients_[request.id] = {std::move(queue), request.params.n};
    engine_->add(std::move(request));
  });
  return id;
}

void EngineLoop::set_token_mask(RequestId id, std::int32_t sample, TokenMask mask) {
  engine_->check_mask(mask);
  post([this, id, sample, mask = std::move(mask)]() mutable { engine_->set_token_mask(id, sample, std::move(mask)); });
}

void EngineLoop::cancel(RequestId id, std::optional<std::int32_t> sample) {
  post([this, id, sample] { engine_->cancel(id, sample); });
}

void EngineLoop::cancel_all(std::shared_ptr<OutputQueue> queue) {
  post([this, queue = std::move(queue)] {
    for (const auto& [id, client] : clients_) {
      if (client.queue == queue) engine_->cancel(id);
    }
  });
}

void EngineLoop::forward(const StepBatch& batch, std::span<float> logits) {
  call([&] { engine_->forward(batch, logits); });
}

EngineStats EngineLoop::stats() {
  EngineStats stats;
  call([&] { stats = engine_->stats(); }, Scope::kLocal);
  return stats;
}

void EngineLoop::dispatch(const StepOutput& output) {
  for (const TokenEvent& event : output.events) {
    const auto client = clients_.find(event.request);
    if (client == clients_.end()) continue;
    client->second.queue->push(event, output);
    if (event.finish != FinishReason::kNone && --client->second.unfinished == 0) clients_.erase(client);
  }
}

void EngineLoop::fail_clients(std::exception_ptr error) {
  for (auto& [id, client] : clients_) client.queue->fail(error);
  clients_.clear();
}

// Runs as many commands as every process that shares the model has.
void EngineLoop::run_commands(std::vector<Command>& shared, bool busy) {
  if (shared.empty() && !busy) return;
  auto count = static_cast<std::int64_t>(shared.size());
  try {
    count = engine_->agree(count);
  } catch (...) {
    fail_clients(std::current_exception());  // and let the commands find out the same
  }
  for (auto command = shared.begin(); command != shared.begin() + count; ++command) {
    try {
      (*command)();
    } catch (...) {
      fail_clients(std::current_exception());
    }
  }
  shared.erase(shared.begin(), shared.begin() + count);
}

void EngineLoop::run() {
  StepOutput output;
  std::vector<Command> shared;
  std::vector<Command> local;
  bool busy = false;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      const auto has_work = [this] { return stopping_ || !commands_.empty() || !local_commands_.empty(); };
      if (!busy && shared.empty()) wake_.wait(lock, has_work);
      if (stopping_) break;
      shared.insert(shared.end(), std::make_move_iterator(commands_.begin()), std::make_move_iterator(commands_.end()));
      commands_.clear();
      std::swap(local, local_commands_);
    }
    for (Command& command : local) command();
    local.clear();
    run_commands(shared, busy);
    try {
      // A process that is done must not wait for agreement with one that has ended.
      busy = engine_->step(output) && !engine_->idle();
      dispatch(output);
    } catch (...) {
      fail_clients(std::current_exception());
      busy = false;
    }
  }
  fail_clients(std::make_exception_ptr(BackendError("the model was closed while requests were being served")));
}

}  // namespace lb
