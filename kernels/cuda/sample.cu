// SPDX-License-Identifier: Apache-2.0
// Sampling, a cluster of thread blocks a row. Each block keeps its slice of the adjusted logits in
// shared memory, so that the row is read once (before sm_90 one block keeps all of it in global
// memory). The cuts by top_k and top_p are thresholds, found digit by digit from histograms of
// counts or of weights; weights are integers, so nothing depends on the order of addition.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/logits.cuh"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRanks = 8;   // blocks of a cluster
constexpr int kCopies = 8;  // of each bin, so that lanes that meet in a bin do not wait
constexpr int kBins = 256;  // of a digit of 8 bits
constexpr int kParts = 4;   // of a bin: its count, and its weight in 3 parts of 13 bits
constexpr int kPartBits = 13;
constexpr int kEditsAtOnce = kBins * kParts * kCopies / 2;  // as many as lie in the bins' memory
static_assert(3 * kPartBits > kWeightBits);                 // 1 is 2^kWeightBits

struct Params {
  const float* logits;
  int64_t width;
  int32_t vocab;
  const SampleRow* rows;
  int32_t* token;
  float* log_prob;
  int32_t* last_token;
  const LogitEdit* edits;
  int64_t max_edits;
  uint16_t* generated;
  int64_t generated_width;
  const uint32_t* prompt;
  int64_t prompt_width;
  float* slices;      // in global memory, or null: they fit shared memory
  int32_t slice;      // most ids of a block
  int64_t first_row;  // of this launch
};

struct Shared {
  uint32_t bins[kBins * kParts * kCopies];
  uint32_t merged[kBins * kParts];  // of this block, for the others to read
  uint64_t warp_best[kWarps], warp_sum[kWarps];
  uint64_t best[2];  // of this block: raw and adjusted
  uint64_t sum[2];   // raw and tempered weights
  uint64_t warp_kept[kWarps], kept[kWarps];
  uint64_t found[3];  // what the first warp found in the histogram
  int32_t token;
};

// Two 32-bit loads of another block's shared memory.
template <int kTeam>
__device__ uint64_t Load64(const uint64_t* own, int rank) {
  const uint32_t address = ClusterAddress<kTeam>(own, rank);
  return ClusterLoad<kTeam>(address) | uint64_t{ClusterLoad<kTeam>(address + 4)} << 32;
}

__device__ uint64_t BlockMax(Shared& sh, uint64_t x) {
  x = WarpMax64(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.warp_best[threadIdx.x / 32] = x;
  __syncthreads();
  return WarpMax64(sh.warp_best[threadIdx.x % kWarps]);
}
__device__ uint64_t BlockSum(Shared& sh, uint64_t x) {
  x = WarpSum64(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.warp_sum[threadIdx.x / 32] = x;
  __syncthreads();
  const uint64_t part = threadIdx.x % 32 < kWarps ? sh.warp_sum[threadIdx.x % 32] : 0;
  return WarpSum64(part);
}

__device__ float Penalised(const SampleRow& row, bool in_prompt, uint32_t count, float logit) {
  if (row.repetition != 1 && (in_prompt || count > 0)) {
    logit = logit > 0 ? __fdiv_rn(logit, row.repetition) : __fmul_rn(logit, row.repetition);
  }
  if (count == 0) return logit;
  logit = __fsub_rn(logit, __fmul_rn(row.frequency, static_cast<float>(count)));
  return __fsub_rn(logit, row.presence);
}

// One block's ids of a row.
struct Slice {
  float* logits;  // adjusted
  int32_t begin, count;
};

// Adds the row's edits, those of an id in their order: one warp goes through them, each round with
// the first of every id.
__device__ void AddEdits(const Params& p, const SampleRow& row, const Slice& slice, Shared& sh) {
  auto* edits = reinterpret_cast<LogitEdit*>(sh.bins);
  const LogitEdit* from = p.edits + row.lane * p.max_edits + row.edit_begin;
  for (int32_t begin = 0; begin < row.edit_count; begin += kEditsAtOnce) {
    const int32_t count = min(kEditsAtOnce, row.edit_count - begin);
    __syncthreads();
    for (int32_t e = threadIdx.x; e < count; e += kThreads) edits[e] = from[begin + e];
    __syncthreads();
    if (threadIdx.x >= 32) continue;
    for (int32_t e = threadIdx.x; e - static_cast<int32_t>(threadIdx.x) < count; e += 32) {
      const int32_t at = e < count ? edits[e].id - slice.begin : -1;
      const bool ours = at >= 0 && at < slice.count;
      const unsigned same = __match_any_sync(kAllLanes, ours ? at : -1);
      const int turn = __popc(same & ((1u << threadIdx.x) - 1));
      for (int t = 0; __any_sync(kAllLanes, ours && turn >= t); ++t) {
        if (ours && turn == t) slice.logits[at] = __fadd_rn(slice.logits[at], edits[e].add);
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

// A threshold: ids of a larger key are kept, of the same key those up to `last`.
struct Cut {
  uint32_t key = 0;
  int32_t last = INT32_MAX;

  __device__ bool Keeps(uint32_t k, int32_t id) const {
    return k > key || (k == key && id <= last);
  }
};

// The weight that a logit is drawn with.
struct Tempered {
  float largest, temperature;

  __device__ float operator()(float logit) const {
    const float weight = expf(__fdiv_rn(logit - largest, temperature));
    return isnan(weight) ? 0.0f : weight;
  }
};

// Adds up what `each(add)` adds, add(value, amount) for every id that takes part, in the order of
// falling values: finds the value at which the running total reaches `needed`. Requires: the
// total reaches `needed`, which is not 0; fewer than 2^19 ids a block.
struct Found {
  uint32_t value = 0;
  uint64_t above = 0;   // the total before it
  uint64_t amount = 0;  // its own
};
template <int kTeam, bool kWeights, typename Each>
__device__ Found Find(Shared& sh, uint64_t needed, const Each& each) {
  Found found;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kBins * kParts * kCopies; i += kThreads) sh.bins[i] = 0;
    __syncthreads();
    each([&](uint32_t v, uint64_t amount) {
      if (shift < 24 && (v >> (shift + 8)) != (found.value >> (shift + 8))) return;
      uint32_t* bin = sh.bins + (v >> shift & 255) * kParts * kCopies + threadIdx.x % kCopies;
      if constexpr (kWeights) {
        for (int part = 1; part < kParts && amount != 0; ++part, amount >>= kPartBits) {
          atomicAdd(bin + part * kCopies, static_cast<uint32_t>(amount) & ((1u << kPartBits) - 1));
        }
      } else {
        atomicAdd(bin, 1u);
      }
    });
    __syncthreads();
    for (int i = threadIdx.x; i < kBins * kParts; i += kThreads) {
      uint32_t sum = 0;
      for (int copy = 0; copy < kCopies; ++copy) sum += sh.bins[i * kCopies + copy];
      sh.merged[i] = sum;
    }
    ClusterSync<kTeam>();
    if (threadIdx.x < 32) {  // lane l has the bins 255 - 8 l and below
      uint64_t amounts[8], own = 0;
      for (int k = 0; k < 8; ++k) {
        const int bin = 255 - 8 * static_cast<int>(threadIdx.x) - k;
        amounts[k] = 0;
        for (int part = kWeights ? 1 : 0; part < (kWeights ? kParts : 1); ++part) {
          uint64_t sum = 0;
          for (int rank = 0; rank < kTeam; ++rank) {
            sum += ClusterLoad<kTeam>(ClusterAddress<kTeam>(&sh.merged[bin * kParts + part], rank));
          }
          amounts[k] += kWeights ? sum << (kPartBits * (part - 1)) : sum;
        }
        own += amounts[k];
      }
      uint64_t before = own;  // of the lanes up to and with this one
      for (int i = 1; i < 32; i <<= 1) {
        const uint64_t other = __shfl_up_sync(kAllLanes, before, i);
        if (static_cast<int>(threadIdx.x) >= i) before += other;
      }
      before += found.above - own;
      for (int k = 0; k < 8; ++k) {
        if (before < needed && before + amounts[k] >= needed) {
          sh.found[0] = 255 - 8 * threadIdx.x - static_cast<uint32_t>(k);
          sh.found[1] = before;
          sh.found[2] = amounts[k];
        }
        before += amounts[k];
      }
    }
    ClusterSync<kTeam>();  // the histograms are read, and the first warp is done
    found.value |= static_cast<uint32_t>(sh.found[0]) << shift;
    found.above = sh.found[1];
    found.amount = sh.found[2];
    __syncthreads();
  }
  return found;
}

template <int kTeam>
struct Sampler {
  const Params& p;
  const SampleRow& row;
  const Slice& slice;
  Shared& sh;
  const Tempered tempered;

  // body(id, logit) for this thread's ids.
  template <typename Body>
  __device__ void Each(const Body& body) const {
    for (int32_t i = threadIdx.x; i < slice.count; i += kThreads) {
      body(slice.begin + i, slice.logits[i]);
    }
  }

  // Lets only the lowest `keep` of the ids with the cut's key pass.
  __device__ void LimitTies(uint64_t keep, Cut& cut) const {
    const auto ties = [&](const auto& add) {
      Each([&](int32_t id, float logit) {
        if (gpu::OrderedKey(logit) == cut.key && id <= cut.last) add(~static_cast<uint32_t>(id), 1);
      });
    };
    cut.last = static_cast<int32_t>(~Find<kTeam, false>(sh, keep, ties).value);
  }

  // The row.top_k best ids. Requires: there are more.
  __device__ Cut TopK() const {
    const auto all = [&](const auto& add) {
      Each([&](int32_t, float logit) { add(gpu::OrderedKey(logit), 1); });
    };
    const auto needed = static_cast<uint64_t>(row.top_k);
    const Found found = Find<kTeam, false>(sh, needed, all);
    Cut cut{found.value, INT32_MAX};
    if (needed - found.above < found.amount) LimitTies(needed - found.above, cut);
    return cut;
  }

  // Of the ids that pass `before`, the best ones that reach `needed` together.
  __device__ Cut TopP(uint64_t needed, const Cut& before) const {
    const auto kept = [&](const auto& add) {
      Each([&](int32_t id, float logit) {
        const uint32_t key = gpu::OrderedKey(logit);
        if (before.Keeps(key, id)) add(key, FixedWeight(tempered(logit)));
      });
    };
    const Found found = Find<kTeam, true>(sh, needed, kept);
    Cut cut{found.value, found.value == before.key ? before.last : INT32_MAX};
    const uint64_t each = FixedWeight(tempered(gpu::ScoreOfKey(found.value)));
    const uint64_t keep = (needed - found.above + each - 1) / each;
    if (keep * each < found.amount) LimitTies(keep, cut);
    return cut;
  }

  __device__ uint64_t Kept(const Cut& cut, int32_t id, float logit) const {
    const float weight = tempered(logit);
    return weight >= row.min_p && cut.Keeps(gpu::OrderedKey(logit), id) ? FixedWeight(weight) : 0;
  }

  __device__ uint64_t TeamSum(uint64_t* own, uint64_t x) const {
    const uint64_t sum = BlockSum(sh, x);
    if (threadIdx.x == 0) *own = sum;
    ClusterSync<kTeam>();
    uint64_t total = 0;
    for (int rank = 0; rank < kTeam; ++rank) total += Load64<kTeam>(own, rank);
    ClusterSync<kTeam>();
    return total;
  }

  // Inverse CDF over the kept ids in their order. Exactly one block finds the id and writes it to
  // `token` of the first block.
  __device__ void Draw(const Cut& cut, int rank, int32_t* token) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t span = (p.slice + kThreads - 1) / kThreads * 32;  // ids of a warp
    const int32_t begin = min(warp * span, slice.count), end = min(begin + span, slice.count);
    uint64_t own = 0;
    for (int32_t i = begin + lane; i < end; i += 32) {
      own += Kept(cut, slice.begin + i, slice.logits[i]);
    }
    own = WarpSum64(own);
    if (lane == 0) sh.kept[warp] = own;
    ClusterSync<kTeam>();
    // What lies before this warp, and the total.
    uint64_t before = 0, total = 0;
    for (int i = lane; i < kTeam * kWarps; i += 32) {
      const uint64_t x = Load64<kTeam>(&sh.kept[i % kWarps], i / kWarps);
      total += x;
      if (i < rank * kWarps + warp) before += x;
    }
    before = WarpSum64(before);
    total = WarpSum64(total);
    // u = draw / 2^32; the first id at which the sum exceeds u total.
    const uint64_t target = __umul64hi(total, uint64_t{DrawOf(row)} << 32);
    if (before > target || before + own <= target) return;
    for (int32_t i = begin; i < end; i += 32) {
      const uint64_t x =
          i + lane < end ? Kept(cut, slice.begin + i + lane, slice.logits[i + lane]) : 0;
      uint64_t sum = x;  // up to and with this lane
      for (int k = 1; k < 32; k <<= 1) {
        const uint64_t other = __shfl_up_sync(kAllLanes, sum, k);
        if (lane >= k) sum += other;
      }
      const unsigned over = __ballot_sync(kAllLanes, before + sum > target);
      if (over != 0) {
        if (lane == 0) {
          const int32_t id = slice.begin + i + __ffs(static_cast<int>(over)) - 1;
          ClusterStore<kTeam>(ClusterAddress<kTeam>(token, 0), static_cast<uint32_t>(id));
        }
        return;
      }
      before += __shfl_sync(kAllLanes, sum, 31);
    }
  }

  // The first word of Philox4x32-10 at {position, index, 0, 0} (kernels/ref/philox.h).
  __device__ static uint32_t DrawOf(const SampleRow& row) {
    uint32_t c0 = row.position, c1 = row.index, c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(row.seed), k1 = static_cast<uint32_t>(row.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(b);
      c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(a);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c0;
  }
};

// Reads the block's slice, adjusts it, and returns its best raw and adjusted ranks to the team.
template <int kTeam>
__device__ void LoadSlice(
    const Params& p, const SampleRow& row, const float* raw, const Slice& slice, Shared& sh) {
  uint64_t best = 0;
  for (int32_t i = threadIdx.x; i < slice.count; i += kThreads) {
    const int32_t id = slice.begin + i;
    float logit = raw[id];
    best = max(best, RankOf(gpu::OrderedKey(logit), id));
    if (row.penalised()) {
      const uint32_t word = p.prompt[row.lane * p.prompt_width + id / 32];
      const uint32_t count = p.generated[row.lane * p.generated_width + id];
      logit = Penalised(row, (word >> id % 32 & 1) != 0, count, logit);
    }
    slice.logits[i] = logit;
  }
  best = BlockMax(sh, best);
  uint64_t adjusted = best;
  if (row.penalised() || row.edit_count > 0) {
    if (row.edit_count > 0) AddEdits(p, row, slice, sh);
    adjusted = 0;
    for (int32_t i = threadIdx.x; i < slice.count; i += kThreads) {
      adjusted = max(adjusted, RankOf(gpu::OrderedKey(slice.logits[i]), slice.begin + i));
    }
    adjusted = BlockMax(sh, adjusted);
  }
  if (threadIdx.x == 0) {
    sh.best[0] = best;
    sh.best[1] = adjusted;
  }
  ClusterSync<kTeam>();
}

template <int kTeam>
__global__ void __launch_bounds__(kThreads) SampleKernel(const Params p) {
  auto* slice_memory = DynamicShared<float>();
  __shared__ Shared sh;
  GridTrigger();
  GridWait();
  const int rank = static_cast<int>(blockIdx.x) % kTeam;
  const int64_t s = p.first_row + blockIdx.x / kTeam;
  const SampleRow row = p.rows[s];
  if (row.lane < 0) return;  // the whole team
  const float* raw = p.logits + s * p.width;
  Slice slice;
  slice.begin = min(rank * p.slice, p.vocab);
  slice.count = min(p.slice, p.vocab - slice.begin);
  slice.logits = p.slices == nullptr ? slice_memory : p.slices + int64_t{blockIdx.x} * p.slice;
  LoadSlice<kTeam>(p, row, raw, slice, sh);
  uint64_t best_raw = 0, best = 0;
  for (int r = 0; r < kTeam; ++r) {
    best_raw = max(best_raw, Load64<kTeam>(&sh.best[0], r));
    best = max(best, Load64<kTeam>(&sh.best[1], r));
  }
  const float largest_raw =
      KeyOfRank(best_raw) == 0 ? -INFINITY : gpu::ScoreOfKey(KeyOfRank(best_raw));
  const float largest = KeyOfRank(best) == 0 ? -INFINITY : gpu::ScoreOfKey(KeyOfRank(best));
  if (threadIdx.x == 0) sh.token = KeyOfRank(best) == 0 ? 0 : IdOfRank(best);

  const bool adjusted = row.penalised() || row.edit_count > 0;
  uint64_t sum = 0;
  for (int32_t i = threadIdx.x; i < slice.count; i += kThreads) {
    const float logit = adjusted ? raw[slice.begin + i] : slice.logits[i];
    sum += FixedWeight(Weight(logit, largest_raw));
  }
  const Sampler<kTeam> sampler{p, row, slice, sh, {largest, row.temperature}};
  const uint64_t total_raw = sampler.TeamSum(&sh.sum[0], sum);

  if (row.temperature != 0 && isfinite(largest)) {  // else nothing or only one id has probability
    Cut cut;
    if (row.top_k > 0 && row.top_k < p.vocab) cut = sampler.TopK();
    if (row.top_p < 1) {
      uint64_t mass = 0;
      sampler.Each([&](int32_t id, float logit) {
        if (cut.Keeps(gpu::OrderedKey(logit), id)) mass += FixedWeight(sampler.tempered(logit));
      });
      mass = sampler.TeamSum(&sh.sum[1], mass);
      const double needed = ceil(static_cast<double>(row.top_p) * static_cast<double>(mass));
      cut = sampler.TopP(min(max(static_cast<uint64_t>(needed), uint64_t{1}), mass), cut);
    }
    sampler.Draw(cut, rank, &sh.token);
  }
  ClusterSync<kTeam>();  // the token is there; nobody's memory goes while it is read
  if (rank != 0 || threadIdx.x != 0) return;
  const int32_t token = sh.token;
  p.token[s] = token;
  p.log_prob[s] = static_cast<float>(raw[token] - largest_raw - LogOfSum(total_raw));
  p.last_token[row.lane] = token;
  if (!row.penalised()) return;
  uint16_t& count = p.generated[row.lane * p.generated_width + token];
  if (count < UINT16_MAX) ++count;
}

}  // namespace

void CudaOps::Sample(const SampleArgs& a) {
  if (a.rows.empty()) return;
  Params p = {.logits = a.logits.data,
              .width = a.logits.dim(1),
              .vocab = a.vocab,
              .rows = a.rows.data,
              .token = a.token.data,
              .log_prob = a.log_prob.data,
              .last_token = a.last_token.data,
              .edits = a.edits.data,
              .max_edits = a.edits.dim(1),
              .generated = a.history.generated.data,
              .generated_width = a.history.generated.dim(1),
              .prompt = a.history.prompt.data,
              .prompt_width = a.history.prompt.dim(1),
              .slices = nullptr,
              .slice = (a.vocab + kRanks - 1) / kRanks,
              .first_row = 0};
  const int64_t rows = a.rows.dim(0);
  const size_t shared = static_cast<size_t>(p.slice) * sizeof(float);
  constexpr size_t kMostShared = 180 << 10;
  if (state_->major >= 9 && shared <= kMostShared) {
    LaunchClusters(*state_,
                   kRanks,
                   SampleKernel<kRanks>,
                   dim3(static_cast<unsigned>(rows * kRanks)),
                   kThreads,
                   shared,
                   p);
    return;
  }
  p.slices = state_->sampled.data;
  p.slice = a.vocab;
  const int64_t at_once = state_->sampled.dim(0) / a.vocab;
  for (; p.first_row < rows; p.first_row += at_once) {
    const int64_t count = std::min(at_once, rows - p.first_row);
    Launch(*state_, SampleKernel<1>, dim3(static_cast<unsigned>(count)), kThreads, 0, p);
  }
}

}  // namespace asynctls
