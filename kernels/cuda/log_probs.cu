// SPDX-License-Identifier: Apache-2.0
// Log-probabilities, a block a row: one pass for the largest logit of each thread, one for the sum.
// The likeliest ids are then taken one by one: the best of the threads' best, after which its warp
// looks for that thread's next one.
#include <cmath>

#include "kernels/cuda/logits.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;

struct Shared {
  uint64_t best[kWarps];
  uint64_t sum[kWarps];
};

// The best rank of the block, in every thread.
__device__ uint64_t BlockBest(Shared& shared, uint64_t rank) {
  rank = WarpMax64(rank);
  if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = rank;
  __syncthreads();
  const uint64_t best = WarpMax64(shared.best[threadIdx.x % kWarps]);
  __syncthreads();
  return best;
}

__device__ uint64_t BlockSum(Shared& shared, uint64_t x) {
  x = WarpSum64(x);
  if (threadIdx.x % 32 == 0) shared.sum[threadIdx.x / 32] = x;
  __syncthreads();
  const uint64_t sum = WarpSum64(shared.sum[threadIdx.x % kWarps]);
  __syncthreads();
  return sum;
}

// Of thread `owner`'s ids, the best rank below `last`, 0 if there is none; by a whole warp.
__device__ uint64_t NextBest(const float* logits, int32_t vocab, int owner, uint64_t last) {
  uint64_t next = 0;
  for (int64_t id = owner + int64_t{threadIdx.x % 32} * kThreads; id < vocab;
       id += int64_t{32} * kThreads) {
    const uint64_t rank = RankOf(gpu::OrderedKey(logits[id]), id);
    if (rank < last) next = max(next, rank);
  }
  return WarpMax64(next);
}

__global__ void __launch_bounds__(kThreads) LogProbsKernel(const float* all,
                                                           int64_t width,
                                                           int32_t vocab,
                                                           const LogProbRow* rows,
                                                           float* log_prob,
                                                           int32_t* top_ids,
                                                           float* top_log_probs) {
  __shared__ Shared shared;
  GridWait();
  GridTrigger();
  const int64_t i = blockIdx.x;
  const LogProbRow row = rows[i];
  if (row.token < 0 && row.top == 0) return;
  const float* logits = all + row.row * width;
  uint64_t own = 0;  // rank of the best of this thread's ids that is not listed yet
  for (int64_t id = threadIdx.x; id < vocab; id += kThreads) {
    own = max(own, RankOf(gpu::OrderedKey(logits[id]), id));
  }
  const uint64_t best = BlockBest(shared, own);
  const float largest = KeyOfRank(best) == 0 ? -INFINITY : gpu::ScoreOfKey(KeyOfRank(best));
  uint64_t sum = 0;
  for (int64_t id = threadIdx.x; id < vocab; id += kThreads) {
    sum += FixedWeight(Weight(logits[id], largest));
  }
  const double log_sum = LogOfSum(BlockSum(shared, sum));
  const auto of = [&](float logit) { return static_cast<float>(logit - largest - log_sum); };
  if (threadIdx.x == 0 && row.token >= 0) log_prob[i] = of(logits[row.token]);
  for (int32_t k = 0; k < row.top; ++k) {
    const uint64_t listed = BlockBest(shared, own);
    const bool is_number = KeyOfRank(listed) != 0;
    if (threadIdx.x == 0) {
      top_ids[i * kMaxTopIds + k] = is_number ? IdOfRank(listed) : -1;
      top_log_probs[i * kMaxTopIds + k] = is_number ? of(gpu::ScoreOfKey(KeyOfRank(listed))) : 0.0f;
    }
    if (!is_number) continue;
    const int owner = IdOfRank(listed) % kThreads;
    if (static_cast<int>(threadIdx.x) / 32 != owner / 32) continue;
    const uint64_t next = NextBest(logits, vocab, owner, listed);
    if (static_cast<int>(threadIdx.x) == owner) own = next;
  }
}

}  // namespace

void CudaOps::LogProbs(const LogProbsArgs& a) {
  if (a.rows.empty()) return;
  Launch(*state_,
         LogProbsKernel,
         dim3(static_cast<unsigned>(a.rows.dim(0))),
         kThreads,
         0,
         a.logits.data,
         a.logits.dim(1),
         a.vocab,
         a.rows.data,
         a.log_prob.data,
         a.top_ids.data,
         a.top_log_probs.data);
}

}  // namespace asynctls
