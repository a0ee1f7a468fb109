// The weight table: where each canonical weight of a model is stored.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "graph/graph.h"

namespace lb {

struct WeightSpec {
  std::string name;
  std::vector<std::int64_t> shape;
};

// Every weight that the model needs, by canonical name, each once: embedding, layers in order, head.
std::vector<WeightSpec> expected_weights(const ModelGraph& graph);

class WeightTable {
 public:
  // The file at `path`, opened once for all tensors in it. Throws CheckpointError.
  std::shared_ptr<const File> open(const std::string& path);
  void add(StoredTensor tensor);  // throws CheckpointError when the name is taken

  // Throws one CheckpointError that lists all missing, surplus and misshapen weights.
  void check(const ModelGraph& graph) const;

  const StoredTensor& at(const std::string& name) const;

 private:
  std::map<std::string, std::shared_ptr<const File>> files_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace lb
