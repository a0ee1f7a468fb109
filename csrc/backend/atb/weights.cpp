#include "backend/atb/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "backend/atb/status.h"
#include "base/convert.h"

namespace lb::npu {
namespace {

// What one copy takes: large enough that its start costs nothing, small enough for pinned memory, two of them a thread.
constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;
// More readers than this do not make a file system or the bus faster.
constexpr int kMaxUploaders = 8;

// Rows of a part that are copied together.
struct Task {
  std::size_t entry = 0;
  std::int64_t source_row = -1;  // of the stored weight; -1 for rows of zeros
  std::int64_t target_row = 0;   // of the part
  std::int64_t num_rows = 0;
};

void add_tasks(std::size_t entry, const WeightPart& part, std::vector<Task>& tasks) {
  const std::int64_t row_bytes = part.columns.count * size_bytes(part.element);
  const std::int64_t rows_per_chunk = std::max<std::int64_t>(kChunkBytes / row_bytes, 1);
  std::int64_t target = 0;
  const auto cut = [&](std::int64_t source, std::int64_t count) {
    for (std::int64_t done = 0; done < count; done += rows_per_chunk) {
      const std::int64_t rows = std::min(rows_per_chunk, count - done);
      tasks.push_back({entry, source < 0 ? source : source + done, target + done, rows});
    }
    target += count;
  };
  for (const Range& range : part.rows) cut(part.zeros ? -1 : range.begin, range.count);
  cut(-1, part.padding);
}

// Reads rows of the part and copies them to the device; one object a thread.
class Uploader {
 public:
  Uploader(std::int64_t chunk_bytes, bool needs_tiles) {
    for (PinnedMemory& buffer : buffers_) buffer = PinnedMemory(chunk_bytes, "reading weights");
    if (needs_tiles) rows_.resize(static_cast<std::size_t>(chunk_bytes));
  }

  void finish() { check_acl(aclrtSynchronizeStream(stream_.get()), "aclrtSynchronizeStream", "the weights"); }

  void run(const StoredTensor& stored, const WeightPart& part, const Task& task, std::byte* target) {
    std::byte* staging = buffers_[next_].data();
    next_ = 1 - next_;
    std::byte* rows = part.nz ? rows_.data() : staging;
    read(stored, part, task, rows);
    const std::int64_t row_bytes = part.columns.count * size_bytes(part.element);
    // The copy before this one ended while the rows were read, or is waited for now: then its buffer is free again.
    check_acl(aclrtSynchronizeStream(stream_.get()), "aclrtSynchronizeStream", part.name);
    if (!part.nz) {
      copy(target + task.target_row * row_bytes, staging, task.num_rows * row_bytes, part.name);
      return;
    }
    // Tiles of 16 columns: [columns / 16][rows][16].
    constexpr std::int64_t kTileBytes = 32;
    for (std::int64_t tile = 0; tile < part.columns.count / 16; ++tile) {
      std::byte* column = staging + tile * task.num_rows * kTileBytes;
      for (std::int64_t row = 0; row < task.num_rows; ++row)
        std::memcpy(column + row * kTileBytes, rows + row * row_bytes + tile * kTileBytes, kTileBytes);
      copy(target + (tile * part.num_rows() + task.target_row) * kTileBytes, column, task.num_rows * kTileBytes,
           part.name);
    }
  }

 private:
  void read(const StoredTensor& stored, const WeightPart& part, const Task& task, std::byte* rows) {
    const DType dtype = dtype_of(part.element);
    const std::int64_t count = task.num_rows * part.columns.count;
    if (task.source_row < 0) {
      std::memset(rows, 0, static_cast<std::size_t>(count * size_bytes(part.element)));
      return;
    }
    const auto element = static_cast<std::int64_t>(size_bytes(stored.dtype()));
    const bool converts = stored.dtype() != dtype;
    if (converts) stored_.resize(static_cast<std::size_t>(count * element));
    std::byte* target = converts ? stored_.data() : rows;
    const std::int64_t stored_columns = stored.shape().size() == 2 ? stored.shape()[1] : 1;
    const bool whole_rows = part.columns.count == stored_columns;
    const std::int64_t pieces = whole_rows ? 1 : task.num_rows;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      const std::int64_t first = (task.source_row + piece) * stored_columns + part.columns.begin;
      const std::int64_t bytes = count / pieces * element;
      stored.read(static_cast<std::uint64_t>(first * element), target + piece * bytes,
                  static_cast<std::uint64_t>(bytes));
    }
    if (!converts) return;
    floats_.resize(static_cast<std::size_t>(count));
    to_floats(stored.dtype(), stored_.data(), count, floats_.data());
    from_floats(floats_.data(), count, dtype, rows);
  }

  void copy(std::byte* target, const std::byte* source, std::int64_t bytes, const std::string& name) {
    const auto size = static_cast<std::size_t>(bytes);
    check_acl(aclrtMemcpyAsync(target, size, source, size, ACL_MEMCPY_HOST_TO_DEVICE, stream_.get()),
              "aclrtMemcpyAsync to the device", name);
  }

  PinnedMemory buffers_[2];
  int next_ = 0;
  std::vector<std::byte> rows_;    // of a matrix that becomes tiles
  std::vector<std::byte> stored_;  // of another type
  std::vector<float> floats_;
  Stream stream_;  // last: it waits for its copies before their buffers go
};

}  // namespace

std::size_t DeviceWeights::add(const std::string& name, const WeightPart& part) {
  std::vector<std::size_t>& known = by_name_[name];
  for (const std::size_t index : known) {
    if (entries_[index].part == part) return index;
  }
  known.push_back(entries_.size());
  entries_.push_back({name, part});
  return entries_.size() - 1;
}

void DeviceWeights::plan(Slab& slab) {
  for (Entry& entry : entries_) entry.offset = slab.add(entry.part.bytes());
}

std::int64_t DeviceWeights::bytes() const {
  std::int64_t total = 0;
  for (const Entry& entry : entries_) total += entry.part.bytes();
  return total;
}

void DeviceWeights::upload(const Slab& slab, const Device& device, const WeightLookup& lookup, ThreadPool& pool,
                           const std::function<void(std::int64_t, std::int64_t)>& on_progress) const {
  std::vector<Task> tasks;
  std::int64_t chunk_bytes = kChunkBytes;
  bool needs_tiles = false;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const WeightPart& part = entries_[i].part;
    add_tasks(i, part, tasks);
    chunk_bytes = std::max(chunk_bytes, part.columns.count * size_bytes(part.element));
    needs_tiles = needs_tiles || part.nz;
  }
  const std::int64_t total = bytes();
  std::atomic<std::int64_t> done{0};
  std::atomic<std::size_t> next{0};
  const std::thread::id caller = std::this_thread::get_id();
  parallel_for(pool, std::min(pool.size(), kMaxUploaders), [&](std::int64_t) {
    device.bind_thread();
    Uploader uploader(chunk_bytes, needs_tiles);
    for (std::size_t i = next++; i < tasks.size(); i = next++) {
      const Entry& entry = entries_[tasks[i].entry];
      uploader.run(lookup(entry.name), entry.part, tasks[i], slab.at(entry.offset));
      const std::int64_t now = done += tasks[i].num_rows * entry.part.columns.count * size_bytes(entry.part.element);
      if (on_progress && std::this_thread::get_id() == caller) on_progress(now, total);
    }
    uploader.finish();
  });
  if (on_progress) on_progress(total, total);
}

}  // namespace lb::npu
