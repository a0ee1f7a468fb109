#include "model/weights.h"

#include <set>
#include <utility>

#include "base/error.h"

namespace lb {

std::vector<WeightSpec> expected_weights(const ModelGraph& graph) {
  std::vector<WeightSpec> specs;
  std::set<std::string> seen;
  const auto collect = [&](const Graph& part, const auto& full_name) {
    for (const Value& value : part.values) {
      if (value.role != Role::kWeight) continue;
      const std::string name = full_name(value.name);
      if (seen.insert(name).second) specs.push_back({name, value.dims});
    }
  };
  const auto as_is = [](const std::string& name) { return name; };
  collect(graph.embed, as_is);
  for (std::int64_t layer = 0; layer < graph.num_layers; ++layer) {
    collect(graph.layer, [layer](const std::string& name) { return layer_weight_name(layer, name); });
  }
  collect(graph.head, as_is);
  return specs;
}

std::shared_ptr<const File> WeightTable::open(const std::string& path) {
  std::shared_ptr<const File>& file = files_[path];
  if (file == nullptr) file = std::make_shared<const File>(path);
  return file;
}

void WeightTable::add(StoredTensor tensor) {
  const std::string name = tensor.name();
  if (!tensors_.emplace(name, std::move(tensor)).second) throw CheckpointError(cat("'", name, "' is given twice"));
}

void WeightTable::check(const ModelGraph& graph) const {
  std::string problems;
  std::set<std::string> expected;
  for (const WeightSpec& spec : expected_weights(graph)) {
    expected.insert(spec.name);
    const auto found = tensors_.find(spec.name);
    if (found == tensors_.end()) {
      problems += cat("\n  missing '", spec.name, "' ", shape_text(spec.shape));
    } else if (found->second.shape() != spec.shape) {
      problems +=
          cat("\n  '", spec.name, "' is ", shape_text(found->second.shape()), ", expected ", shape_text(spec.shape));
    }
  }
  for (const auto& [name, tensor] : tensors_) {
    if (!expected.contains(name)) problems += cat("\n  surplus '", name, "' ", shape_text(tensor.shape()));
  }
  if (!problems.empty()) throw CheckpointError("the weights do not fit the model:" + problems);
}

const StoredTensor& WeightTable::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  LB_CHECK(found != tensors_.end(), name);
  return found->second;
}

}  // namespace lb
