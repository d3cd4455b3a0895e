// SPDX-License-Identifier: Apache-2.0
// Matrix products. Decode rows (few, memory-bound) go through a kernel of our own that reads the
// weights once at the speed of memory; prompt rows through cuBLASLt (prompt_gemm.cc). In both a row
// of the result does not depend on how many rows there are.
#include <algorithm>

#include "kernels/cuda/decode_gemm.cuh"
#include "kernels/cuda/prompt_gemm.h"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

// ---- decode rows

// Blocks of a multiprocessor that fetch weights while the op before is still running: their rings
// are what the memory has to bring meanwhile; a third one's would only delay x.
constexpr int kBlocksAhead = 2;

template <typename Shape, Finish kFinish, typename Out>
void LaunchDecodeGemm(CudaOps::State& state, DecodeGemmParams<Out> p) {
  constexpr int kMade = FeaturesMade(kFinish, Shape::kGroups);
  p.blocks_ahead = std::min(Shape::kResident, kBlocksAhead) * state.multiprocessors;
  Launch(state,
         DecodeGemmKernel<Shape, kFinish, Out>,
         dim3(static_cast<unsigned>((p.features + kMade - 1) / kMade)),
         kGemmThreads,
         static_cast<size_t>(Shape::Bytes(p.rows, p.width)),
         p);
}

// In how many turns of one group the multiprocessors are done with so many groups, of which a block
// takes `groups` and a multiprocessor holds `together` blocks at a time.
int Turns(const CudaOps::State& state, int all, int groups, int together) {
  const int blocks = (all + groups - 1) / groups, places = together * state.multiprocessors;
  return (blocks + places - 1) / places * together * groups;
}

// Whether a multiprocessor can hold as many blocks of the variant as it is to.
template <typename Shape, typename Out>
bool Fits(const CudaOps::State& state, const DecodeGemmParams<Out>& p) {
  constexpr int kRest = 1024 + 128;  // of a block: what the machine takes, and what is not dynamic
  return Shape::kResident * (Shape::Bytes(p.rows, p.width) + kRest) <= state.shared_bytes + 1024;
}

// One or two rows: a ring as deep as can be, or more blocks with smaller ones, which begin sooner.
template <bool kNorm, Finish kFinish, typename Out>
void MultiplyFew(CudaOps::State& state, const DecodeGemmParams<Out>& p) {
  constexpr int kGroups = GroupsTogether(kFinish);
  constexpr Reading kWhole = kNorm ? Reading::kNormed : Reading::kWhole;
  using Deep = DecodeGemmShape<kGroups, 1, 6, kWhole>;
  using LessDeep = DecodeGemmShape<kGroups, 1, 5, kWhole>;
  using Early = DecodeGemmShape<kGroups, 1, 4, kWhole>;
  const int all = kGroups * ((p.features + kFeatures - 1) / kFeatures);
  const int deep = Turns(state, all, kGroups, Deep::kResident);
  const int early = Turns(state, all, kGroups, Early::kResident);
  const bool soon = early < deep || (kNorm && early == deep);
  if constexpr (!kNorm) {  // with a norm, x is whole even where fewer blocks fit than should
    const bool fits = soon ? Fits<Early>(state, p) : Fits<LessDeep>(state, p);
    using DeepHalfLines = DecodeGemmShape<kGroups, 1, 6, Reading::kDirect>;
    using EarlyHalfLines = DecodeGemmShape<kGroups, 1, 4, Reading::kDirect>;
    if (!fits && soon) return LaunchDecodeGemm<EarlyHalfLines, kFinish>(state, p);
    if (!fits) return LaunchDecodeGemm<DeepHalfLines, kFinish>(state, p);
    if (!soon && !Fits<Deep>(state, p)) return LaunchDecodeGemm<LessDeep, kFinish>(state, p);
  }
  if (soon) return LaunchDecodeGemm<Early, kFinish>(state, p);
  LaunchDecodeGemm<Deep, kFinish>(state, p);
}

// 17 to 32 rows: x is a part of what is read, so a block makes as many groups as leave no
// multiprocessor without work.
template <Finish kFinish, typename Out>
void MultiplyMany(CudaOps::State& state, const DecodeGemmParams<Out>& p) {
  constexpr int kTogether = GroupsTogether(kFinish);
  using Two = DecodeGemmShape<2, 4, 6, Reading::kPieces, 3>;
  using Three = DecodeGemmShape<3, 4, 6, Reading::kPieces, 2>;
  using Four = DecodeGemmShape<4, 4, 6, Reading::kPieces, 2>;
  const int all = kTogether * ((p.features + kFeatures - 1) / kFeatures);
  const int two = Turns(state, all, 2, 1), four = Turns(state, all, 4, 1);
  if (state.shared_bytes < Two::Bytes(p.rows, p.width)) {
    return LaunchDecodeGemm<DecodeGemmShape<2, 4, 6, Reading::kDirect>, kFinish>(state, p);
  }
  if constexpr (kTogether == 1) {
    const int three = Turns(state, all, 3, 1);
    if (three < std::min(two, four)) return LaunchDecodeGemm<Three, kFinish>(state, p);
  }
  if (two < four) return LaunchDecodeGemm<Two, kFinish>(state, p);
  LaunchDecodeGemm<Four, kFinish>(state, p);
}

// At most 64 rows; with a norm, at most kMostNormedRows.
template <Finish kFinish, typename Out>
void DecodeGemm(CudaOps::State& state, const DecodeGemmParams<Out>& p) {
  if constexpr (kFinish != Finish::kAdd) {
    if (p.norm != nullptr) return MultiplyFew<true, kFinish>(state, p);
  }
  if (p.rows <= 2) return MultiplyFew<false, kFinish>(state, p);
  using Eight = DecodeGemmShape<2, 1, 5, Reading::kPieces, 3>;
  constexpr int kLong = 8192;  // for a longer x the deeper ring is worth more, measured at 12,288
  if (p.rows <= 8 && p.width <= kLong && Eight::Bytes(p.rows, p.width) <= state.shared_bytes) {
    return LaunchDecodeGemm<Eight, kFinish>(state, p);
  }
  using EightLong = DecodeGemmShape<2, 1, 6, Reading::kDirect>;
  using Sixteen = DecodeGemmShape<2, 2, 6, Reading::kDirect>;
  if (p.rows <= 8) return LaunchDecodeGemm<EightLong, kFinish>(state, p);
  if (p.rows <= 16) return LaunchDecodeGemm<Sixteen, kFinish>(state, p);
  if (p.rows <= 32) return MultiplyMany<kFinish>(state, p);
  LaunchDecodeGemm<DecodeGemmShape<2, 8, 6, Reading::kDirect>, kFinish>(state, p);
}

// ---- any shape: one thread an element. What the others do not cover.
template <typename Out>
__global__ void AnyGemmKernel(
    const bf16* w, const bf16* x, Out* out, int64_t features, int64_t width) {
  GridTrigger();
  GridWait();
  const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (n >= features) return;
  float sum = 0;
  for (int64_t k = 0; k < width; ++k) {
    sum = fmaf(Widen(x[row * width + k]), Widen(w[n * width + k]), sum);
  }
  if constexpr (sizeof(Out) == sizeof(float)) {
    out[row * features + n] = sum;
  } else {
    out[row * features + n] = Narrow(sum);
  }
}

// Whether the fast ways can take it.
bool Regular(const Matrix& w, const void* x, const void* out) {
  return w.data.dim(1) % kPiece == 0 && w.data.dim(0) % 8 == 0 && Aligned(w.data.data) &&
         Aligned(x) && Aligned(out);
}

// Decode rows, in turns of 64. Requires: Regular.
template <Finish kFinish, typename Out>
void DecodeRows(CudaOps::State& state,
                const Matrix& w,
                const View<const bf16, 2>& x,
                const bf16* norm,
                float eps,
                const View<Out, 2>& out) {
  constexpr int64_t kMost = 64;
  for (int64_t t = 0; t < x.dim(0); t += kMost) {
    DecodeGemm<kFinish, Out>(state,
                             {.w = w.data.data,
                              .x = x[t].data,
                              .norm = norm,
                              .out = out[t].data,
                              .features = static_cast<int>(out.dim(1)),
                              .width = static_cast<int>(x.dim(1)),
                              .rows = static_cast<int>(std::min(kMost, x.dim(0) - t)),
                              .eps = eps,
                              .blocks_ahead = 0});
  }
}

// out = x w^T and no more.
template <typename Out>
void Product(CudaOps::State& state,
             const Matrix& w,
             const View<const bf16, 2>& x,
             const View<Out, 2>& out,
             bool decode) {
  const int64_t rows = x.dim(0), features = w.data.dim(0);
  if (!Regular(w, x.data, out.data)) {
    Launch(state,
           AnyGemmKernel<Out>,
           dim3(static_cast<unsigned>((features + 127) / 128), static_cast<unsigned>(rows)),
           128,
           0,
           w.data.data,
           x.data,
           out.data,
           features,
           w.data.dim(1));
  } else if (decode) {
    DecodeRows<Finish::kStore>(state, w, x, nullptr, 0, out);
  } else {
    PromptGemm(state, w.data, x.data, out.data, rows);
  }
}

__global__ void AddKernel(const bf16* x, int64_t count, bf16* to) {
  GridTrigger();
  GridWait();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to[i] = Narrow(Widen(to[i]) + Widen(x[i]));
}

}  // namespace

void CudaOps::Gemm(const GemmArgs& a) {
  if (a.out.empty()) return;
  View<const bf16, 2> x = a.x;
  const bool fast = a.decode && Regular(*a.w, x.data, a.out.data) && Aligned(a.normed.data);
  const bf16* norm = nullptr;
  if (!a.norm.empty()) {
    if (fast && a.residual.empty() && Aligned(a.norm.data) &&
        NormsItself(x.dim(0), x.dim(1), state_->shared_bytes)) {
      norm = a.norm.data;
    } else {
      RmsNorm({.x = x, .residual = {}, .weight = a.norm, .out = a.normed, .eps = a.eps});
      x = a.normed;
    }
  }
  if (fast && !a.residual.empty()) {
    return DecodeRows<Finish::kAdd>(*state_, *a.w, x, nullptr, 0, a.residual);
  }
  if (fast && !a.gated.empty()) {
    return DecodeRows<Finish::kGate>(*state_, *a.w, x, norm, a.eps, a.gated);
  }
  if (norm != nullptr) return DecodeRows<Finish::kStore>(*state_, *a.w, x, norm, a.eps, a.out);
  Product(*state_, *a.w, x, a.out, a.decode);
  if (!a.residual.empty()) {
    Launch(*state_,
           AddKernel,
           dim3(static_cast<unsigned>((a.out.size() + 255) / 256)),
           256,
           0,
           a.out.data,
           a.out.size(),
           a.residual.data);
  }
  if (!a.gated.empty()) SwiGlu({.gate_up = a.out, .out = a.gated});
}

// Few rows in any step: the rows that are sampled, or a tile of a prompt's.
void CudaOps::Logits(const LogitsArgs& a) {
  if (!a.out.empty()) Product(*state_, *a.w, a.x, a.out, true);
}

}  // namespace asynctls
