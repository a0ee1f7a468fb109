#include "communicator.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "acl/state.h"

namespace atb_double {
namespace {

sockaddr_un abstract_address(const std::string& name, socklen_t& length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t used = std::min(name.size(), sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path + 1, name.data(),
              used);  // The leading zero makes it abstract: it ends with the process.
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + used);
  return address;
}

void set_timeout(int socket) {
  const timeval limit{settings().comm_timeout_seconds, 0};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

bool write_all(int socket, const void* data, std::size_t bytes) {
  const auto* at = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(socket, at, bytes, MSG_NOSIGNAL);
    if (sent <= 0) {
      return false;
    }
    at += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool read_all(int socket, void* data, std::size_t bytes) {
  auto* at = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t received = ::recv(socket, at, bytes, 0);
    if (received <= 0) {
      return false;
    }
    at += received;
    bytes -= static_cast<std::size_t>(received);
  }
  return true;
}

}  // namespace

std::shared_ptr<Communicator> Communicator::join(const std::string& backend, const std::string& domain, int rank,
                                                 int size) {
  static auto* mutex = new std::mutex;
  static auto* known = new std::map<std::string, std::shared_ptr<Communicator>>;
  const char* suffix = std::getenv("ATB_SHARE_MEMORY_NAME_SUFFIX");
  const std::string name = "atb_double/" + std::to_string(getuid()) + "/" + backend + "/" + domain + "/" +
                           std::to_string(size) + "/" + (suffix == nullptr ? "" : suffix);
  const std::lock_guard lock(*mutex);
  std::shared_ptr<Communicator>& made = (*known)[name + "/" + std::to_string(rank)];
  if (made == nullptr) {
    auto fresh = std::make_shared<Communicator>(rank, size);
    if (!fresh->connect_ranks(name)) {
      log_error("rank " + std::to_string(rank) + " of " + std::to_string(size) + ": the other ranks did not come to '" +
                name + "'");
      return nullptr;
    }
    made = std::move(fresh);
  }
  return made;
}

Communicator::~Communicator() {
  for (const auto& [rank, socket] : peers_) {
    close(socket);
  }
}

bool Communicator::connect_ranks(const std::string& name) {
  if (size_ == 1) {
    return true;
  }
  socklen_t length = 0;
  const sockaddr_un address = abstract_address(name, length);
  const auto* where = reinterpret_cast<const sockaddr*>(&address);
  if (rank_ == 0) {
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    set_timeout(listener);
    const bool all = bind(listener, where, length) == 0 && listen(listener, size_) == 0 && accept_ranks(listener);
    close(listener);
    return all;
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(settings().comm_timeout_seconds);
  while (std::chrono::steady_clock::now() < deadline) {  // Rank 0 may not listen yet.
    const int to_root = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    set_timeout(to_root);
    if (connect(to_root, where, length) == 0) {
      peers_[0] = to_root;
      return write_all(to_root, &rank_, sizeof(rank_));
    }
    close(to_root);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

bool Communicator::accept_ranks(int listener) {
  while (static_cast<int>(peers_.size()) < size_ - 1) {
    const int peer = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (peer < 0) {
      return false;
    }
    set_timeout(peer);
    int rank = -1;
    if (!read_all(peer, &rank, sizeof(rank)) || rank <= 0 || rank >= size_ || !peers_.emplace(rank, peer).second) {
      log_error("rank " + std::to_string(rank) + " joined twice, or is no rank of " + std::to_string(size_));
      close(peer);
      return false;
    }
  }
  return true;
}

// A message is what the sender does, as text, then its bytes; each with its length before it.
void Communicator::send(int peer, const std::string& what, std::span<const std::byte> bytes) {
  const uint64_t lengths[2] = {what.size(), bytes.size()};
  if (!write_all(peers_[peer], lengths, sizeof(lengths)) || !write_all(peers_[peer], what.data(), what.size()) ||
      !write_all(peers_[peer], bytes.data(), bytes.size())) {
    throw DeviceFault("rank " + std::to_string(peer) + " is gone");
  }
}

Communicator::Bytes Communicator::receive(int peer, const std::string& what) {
  uint64_t lengths[2] = {};
  if (!read_all(peers_[peer], lengths, sizeof(lengths))) {
    throw DeviceFault("rank " + std::to_string(peer) + " is gone or does not answer");
  }
  std::string theirs(lengths[0], ' ');
  Bytes bytes(lengths[1]);
  if (!read_all(peers_[peer], theirs.data(), theirs.size()) || !read_all(peers_[peer], bytes.data(), bytes.size())) {
    throw DeviceFault("rank " + std::to_string(peer) + " is gone");
  }
  if (theirs != what) {
    throw DeviceFault("rank " + std::to_string(peer) + " does " + theirs + ", rank " + std::to_string(rank_) +
                      " does " + what);
  }
  return bytes;
}

Communicator::Bytes Communicator::exchange(const std::string& what, std::span<const std::byte> mine,
                                           const Combine& combine) {
  const std::lock_guard lock(mutex_);
  if (rank_ != 0) {
    send(0, what, mine);
    return receive(0, what);
  }
  std::vector<Bytes> all = {Bytes(mine.begin(), mine.end())};
  try {
    for (int peer = 1; peer < size_; ++peer) {
      all.push_back(receive(peer, what));
    }
  } catch (const DeviceFault& fault) {
    for (const auto& [peer, socket] : peers_) {  // Nobody waits for this exchange any longer.
      shutdown(socket, SHUT_RDWR);
    }
    throw;
  }
  const Bytes result = combine(all);
  for (int peer = 1; peer < size_; ++peer) {
    send(peer, what, result);
  }
  return result;
}

}  // namespace atb_double
