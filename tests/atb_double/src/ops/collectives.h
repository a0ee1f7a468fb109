#ifndef ATB_DOUBLE_SRC_OPS_COLLECTIVES_H
#define ATB_DOUBLE_SRC_OPS_COLLECTIVES_H

// What AllReduce, AllGather, Broadcast and LinearParallel share.

#include <fstream>
#include <memory>
#include <string>

#include "acl/acl.h"
#include "atb/base.h"
#include "communicator.h"

namespace atb_double {

// The part of a collective's parameters that says who takes part.
struct Ranks {
  int rank = 0;
  int size = 0;
  int root = 0;
  std::string backend;
  std::string domain;

  template <typename Param>
  static Ranks of(const Param& param) {
    return {param.rank, param.rankSize, param.rankRoot, param.backend, param.commDomain};
  }
  // Null in null mode, where nothing is communicated; `status` tells a failure.
  std::shared_ptr<Communicator> join(const std::string& who, Status& status) const;
  Status check(const std::string& who) const;
};

// The checks of every collective at its creation.
template <typename Param>
Status check_ranks(const std::string& who, const Param& param) {
  const auto refused = [&who](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, who, why); };
  if (!all_zero(param.rsv)) {
    return refused("rsv is not zero");
  }
  if (param.commMode != atb::infer::COMM_MULTI_PROCESS && param.commMode != atb::infer::COMM_MULTI_THREAD) {
    return refused("commMode " + std::to_string(param.commMode));
  }
  if (param.hcclComm != nullptr || param.commMode == atb::infer::COMM_MULTI_THREAD || !param.rankTableFile.empty()) {
    const bool missing = !param.rankTableFile.empty() && !std::ifstream(param.rankTableFile).good();
    return refused(missing ? "there is no rankTableFile '" + param.rankTableFile + "'"
                           : "the double runs one process a rank, without hcclComm and rank table");
  }
  return Ranks::of(param).check(who);
}

// The sum over ranks of float values, each rounded to the type of `like` on its way out.
std::vector<float> all_reduce(Communicator* communicator, const std::string& what, const std::string& type,
                              const std::vector<float>& mine);

}  // namespace atb_double

#endif
