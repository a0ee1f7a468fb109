// The sizes that the installed libraries have (x86-64, C++11 strings): a field in the wrong place does not compile.

#include "atb/atb_infer.h"

namespace {

using namespace atb;
using namespace atb::infer;

template <typename T, std::size_t Bytes>
constexpr bool kSize = sizeof(T) == Bytes;

static_assert(kSize<Dims, 72> && kSize<TensorDesc, 80> && kSize<Tensor, 104>);
static_assert(kSize<SVector<uint32_t>, 288> && kSize<SVector<int64_t>, 544> && kSize<SVector<TensorDesc>, 5224>);
static_assert(kSize<SVector<Tensor>, 6784> && kSize<VariantPack, 13568> && kSize<SVector<ReshapeFunc>, 2104>);
static_assert(kSize<Node, 3232>);
static_assert(kSize<GatherParam, 32> && kSize<RmsNormParam, 144> && kSize<LinearParam, 32>);
static_assert(kSize<SplitParam, 304> && kSize<ConcatParam, 16> && kSize<SliceParam, 1096>);
static_assert(kSize<TransposeParam, 296> && kSize<TransdataParam, 560> && kSize<ElewiseParam, 64>);
static_assert(kSize<ActivationParam, 24> && kSize<RopeParam, 16> && kSize<SelfAttentionParam, 144>);
static_assert(kSize<PagedAttentionParam, 120> && kSize<ReshapeAndCacheParam, 24>);
static_assert(kSize<SoftmaxParam, 552> && kSize<SortParam, 296>);
#if _GLIBCXX_USE_CXX11_ABI
static_assert(kSize<GraphParam, 104> && kSize<LinearParallelParam, 224> && kSize<AllReduceParam, 232>);
static_assert(kSize<AllGatherParam, 192> && kSize<BroadcastParam, 192>);
#endif

}  // namespace
