// The numbers of KV cache blocks: who uses them, which are free, and which hold a prefix that can be used again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lb {

// Identifies the tokens of a full block and of everything before it. Never reused.
using PrefixId = std::uint64_t;
inline constexpr PrefixId kNoPrefix = 0;  // the empty prefix

// Where the index looks for a block that holds `tokens` after `before`.
std::uint64_t prefix_hash(PrefixId before, std::span<const std::int32_t> tokens);

// Knows block numbers, never cache bytes. A block is free or referenced; a free block may still hold a known prefix,
// and is then found by find() until it is needed for something else, least recently used first. All memory is allocated
// by the constructor. Not thread-safe.
class BlockPool {
 public:
  BlockPool(std::int64_t num_blocks, std::int64_t block_size);

  std::int64_t num_blocks() const { return static_cast<std::int64_t>(blocks_.size()); }
  std::int64_t block_size() const { return block_size_; }
  std::int64_t num_free() const { return num_free_; }
  std::int32_t references(std::int32_t block) const { return blocks_[static_cast<std::size_t>(block)].references; }

  // Takes a free block, with one reference; forgets the prefix that it may have held. There must be one.
  std::int32_t allocate();
  // Adds a reference; the block may be free as long as it holds a prefix.
  void acquire(std::int32_t block);
  // Drops a reference; the block is free after the last one.
  void release(std::int32_t block);

  struct Match {
    std::int32_t block = -1;  // -1: none
    PrefixId prefix = kNoPrefix;
  };
  // Finds a block that holds `tokens` (block_size of them) after the prefix `before`. Tokens are compared, not only
  // their hash.
  Match find(PrefixId before, std::span<const std::int32_t> tokens) const;
  // Makes a referenced, full block findable, and returns the prefix that ends with it. When another block already holds
  // the same prefix, that one stays the findable one.
  PrefixId publish(std::int32_t block, PrefixId before, std::span<const std::int32_t> tokens);
  // Forgets all prefixes.
  void clear_prefixes();

  // Throws InternalError when free list, counts and index contradict each other.
  void check_invariants() const;

 private:
  static constexpr std::int32_t kNone = -1;

  struct Block {
    std::int32_t references = 0;
    std::int32_t previous = kNone;  // in the free list
    std::int32_t next = kNone;
    std::int32_t next_in_bucket = kNone;
    PrefixId prefix = kNoPrefix;  // kNoPrefix: not in the index
    PrefixId before = kNoPrefix;
    std::uint64_t hash = 0;
  };

  Block& at(std::int32_t block) { return blocks_[static_cast<std::size_t>(block)]; }
  const Block& at(std::int32_t block) const { return blocks_[static_cast<std::size_t>(block)]; }
  std::span<const std::int32_t> tokens_of(std::int32_t block) const;
  std::int32_t& bucket(std::uint64_t hash) { return buckets_[hash % buckets_.size()]; }
  std::int32_t bucket(std::uint64_t hash) const { return buckets_[hash % buckets_.size()]; }
  void push_free(std::int32_t block, bool at_front);
  void remove_free(std::int32_t block);
  void forget(std::int32_t block);

  const std::int64_t block_size_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> tokens_;   // [num_blocks, block_size] of blocks in the index
  std::vector<std::int32_t> buckets_;  // heads of chains through next_in_bucket
  std::int32_t first_free_ = kNone;    // allocated next
  std::int32_t last_free_ = kNone;
  std::int64_t num_free_ = 0;
  PrefixId last_prefix_ = kNoPrefix;
};

}  // namespace lb
