#include "engine/block_pool.h"

#include <algorithm>

#include "base/error.h"

namespace lb {
namespace {

// The finaliser of SplitMix64 over a running state: every input bit affects every output bit.
std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  std::uint64_t x = state + 0x9e3779b97f4a7c15ULL + value;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t prefix_hash(PrefixId before, std::span<const std::int32_t> tokens) {
  std::uint64_t hash = mix(0, before);
  for (const std::int32_t token : tokens) hash = mix(hash, static_cast<std::uint32_t>(token));
  return hash;
}

BlockPool::BlockPool(std::int64_t num_blocks, std::int64_t block_size)
    : block_size_(block_size),
      blocks_(static_cast<std::size_t>(num_blocks)),
      tokens_(static_cast<std::size_t>(num_blocks * block_size)),
      buckets_(static_cast<std::size_t>(std::max<std::int64_t>(num_blocks, 1)), kNone) {
  LB_CHECK(num_blocks >= 0 && block_size >= 1, num_blocks, " blocks of ", block_size);
  for (std::int32_t block = 0; block < num_blocks; ++block) push_free(block, /*at_front=*/false);
}

std::span<const std::int32_t> BlockPool::tokens_of(std::int32_t block) const {
  return std::span(tokens_).subspan(static_cast<std::size_t>(block * block_size_),
                                    static_cast<std::size_t>(block_size_));
}

void BlockPool::push_free(std::int32_t block, bool at_front) {
  Block& b = at(block);
  b.previous = at_front ? kNone : last_free_;
  b.next = at_front ? first_free_ : kNone;
  (b.previous == kNone ? first_free_ : at(b.previous).next) = block;
  (b.next == kNone ? last_free_ : at(b.next).previous) = block;
  ++num_free_;
}

void BlockPool::remove_free(std::int32_t block) {
  const Block& b = at(block);
  (b.previous == kNone ? first_free_ : at(b.previous).next) = b.next;
  (b.next == kNone ? last_free_ : at(b.next).previous) = b.previous;
  --num_free_;
}

std::int32_t BlockPool::allocate() {
  LB_CHECK(num_free_ > 0);
  const std::int32_t block = first_free_;
  remove_free(block);
  forget(block);
  at(block).references = 1;
  return block;
}

void BlockPool::acquire(std::int32_t block) {
  Block& b = at(block);
  if (b.references == 0) {
    LB_CHECK(b.prefix != kNoPrefix, "block ", block, " is free and holds nothing");
    remove_free(block);
  }
  ++b.references;
}

void BlockPool::release(std::int32_t block) {
  Block& b = at(block);
  LB_CHECK(b.references > 0, "block ", block, " is free already");
  // A block that holds nothing worth keeping is used again first: its memory is warm, and prefixes live longer.
  if (--b.references == 0) push_free(block, /*at_front=*/b.prefix == kNoPrefix);
}

BlockPool::Match BlockPool::find(PrefixId before, std::span<const std::int32_t> tokens) const {
  const std::uint64_t hash = prefix_hash(before, tokens);
  for (std::int32_t block = bucket(hash); block != kNone; block = at(block).next_in_bucket) {
    const Block& b = at(block);
    if (b.hash == hash && b.before == before && std::ranges::equal(tokens_of(block), tokens)) return {block, b.prefix};
  }
  return {};
}

PrefixId BlockPool::publish(std::int32_t block, PrefixId before, std::span<const std::int32_t> tokens) {
  Block& b = at(block);
  LB_CHECK(b.references > 0 && b.prefix == kNoPrefix && static_cast<std::int64_t>(tokens.size()) == block_size_,
           "block ", block);
  if (const Match match = find(before, tokens); match.block != kNone) return match.prefix;
  std::ranges::copy(tokens, tokens_.begin() + block * block_size_);
  b.prefix = ++last_prefix_;
  b.before = before;
  b.hash = prefix_hash(before, tokens);
  b.next_in_bucket = bucket(b.hash);
  bucket(b.hash) = block;
  return b.prefix;
}

void BlockPool::forget(std::int32_t block) {
  Block& b = at(block);
  if (b.prefix == kNoPrefix) return;
  std::int32_t* link = &bucket(b.hash);
  while (*link != block) link = &at(*link).next_in_bucket;
  *link = b.next_in_bucket;
  b.prefix = kNoPrefix;
  b.next_in_bucket = kNone;
}

void BlockPool::clear_prefixes() {
  for (std::int32_t block = 0; block < num_blocks(); ++block) forget(block);
}

void BlockPool::check_invariants() const {
  std::int64_t listed = 0;
  std::int32_t previous = kNone;
  for (std::int32_t block = first_free_; block != kNone; block = at(block).next) {
    LB_CHECK(at(block).references == 0 && at(block).previous == previous && ++listed <= num_blocks(),
             "free list at block ", block);
    previous = block;
  }
  LB_CHECK(previous == last_free_ && listed == num_free_, listed, " blocks listed as free, ", num_free_, " counted");
  std::int64_t unreferenced = 0;
  std::int64_t indexed = 0;
  for (const Block& b : blocks_) {
    LB_CHECK(b.references >= 0);
    unreferenced += b.references == 0 ? 1 : 0;
    indexed += b.prefix != kNoPrefix ? 1 : 0;
  }
  LB_CHECK(unreferenced == num_free_, unreferenced, " blocks without references, ", num_free_, " free");
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    for (std::int32_t block = buckets_[i]; block != kNone; block = at(block).next_in_bucket) {
      LB_CHECK(at(block).prefix != kNoPrefix && at(block).hash % buckets_.size() == i && --indexed >= 0,
               "index at block ", block);
    }
  }
  LB_CHECK(indexed == 0, indexed, " blocks hold a prefix that the index does not know");
}

}  // namespace lb
