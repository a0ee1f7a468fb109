#ifndef ATB_DOUBLE_SRC_OPS_COMMUNICATOR_H
#define ATB_DOUBLE_SRC_OPS_COMMUNICATOR_H

// Ranks are processes of one machine. Rank 0 listens on an abstract socket whose name is made of the backend, the
// domain, the number of ranks and ATB_SHARE_MEMORY_NAME_SUFFIX; the others connect. Every collective passes through
// rank 0, which also notices when ranks disagree about what they are doing.

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace atb_double {

class Communicator {
 public:
  using Bytes = std::vector<std::byte>;
  // Makes every rank's result of the contributions of all ranks, in rank order.
  using Combine = std::function<Bytes(const std::vector<Bytes>&)>;

  // The one communicator of this process with these properties. Blocks until all ranks are there; nullptr, and a line
  // in the log, when they do not come.
  static std::shared_ptr<Communicator> join(const std::string& backend, const std::string& domain, int rank, int size);

  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Throws DeviceFault when a rank is gone or does something else.
  Bytes exchange(const std::string& what, std::span<const std::byte> mine, const Combine& combine);

 private:
  bool connect_ranks(const std::string& name);
  bool accept_ranks(int listener);
  Bytes receive(int peer, const std::string& what);
  void send(int peer, const std::string& what, std::span<const std::byte> bytes);

  int rank_;
  int size_;
  std::mutex mutex_;
  std::map<int, int> peers_;  // Rank to socket: all the others in rank 0, rank 0 in the others.
};

}  // namespace atb_double

#endif
