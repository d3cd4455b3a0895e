// SPDX-License-Identifier: Apache-2.0
// The two-level operator against own dense decode attention, interleaved in one run: time of every
// part, bytes moved, bandwidth next to a measured stream read, ratio. Not a test: nothing asserts.
//
//   sparse_bench [threads] [max positions] [max rows]
//
// Buffers rotate over as many layers as fit 1.5 GB, so no step finds its data in the inner caches.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/encode_keys.h"
#include "kernels/device/buffer.h"
#include "kernels/ref/exact.h"
#include "kernels/ref/selection.h"

namespace asynctls {
namespace {

constexpr int64_t kD = 128, kR = kCodeDirections, kPart = 4 * kCodeWords;
constexpr int32_t kBlocks = 64, kTokens = 1024;

double Microseconds(const std::function<void()>& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
      .count();
}

double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<int64_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

// GB/s of a plain read with all threads, best of some.
double StreamRead(int threads) {
  using Wide = uint64_t __attribute__((vector_size(64)));
  constexpr int64_t kBytes = 1ll << 30;
  auto buffer = Buffer::Allocate(MemoryKind::kHost, kBytes).value();
  auto* data = static_cast<Wide*>(buffer.data());
  std::fill_n(static_cast<uint64_t*>(buffer.data()), kBytes / 8, 3);
  double best = 0;
  for (int repeat = 0; repeat < 7; ++repeat) {
    uint64_t sum = 0;
    const double us = Microseconds([&] {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(+ : sum)
      for (int64_t piece = 0; piece < 256; ++piece) {
        Wide a = {}, b = {};
        const Wide* p = data + piece * (kBytes / 64 / 256);
        for (int64_t i = 0; i < kBytes / 64 / 256; i += 2) {
          a += p[i];
          b += p[i + 1];
        }
        a += b;
        sum += a[0] + a[7];
      }
    });
    if (sum != 0) best = std::max(best, static_cast<double>(kBytes) / us / 1e3);
  }
  return best;
}

struct Layer {
  Buffer kv, first, second;
};

// Everything the ops of one configuration take. `q_heads` query heads, `groups` KV heads.
class Problem {
 public:
  Problem(int64_t q_heads, int64_t groups, int64_t rows, int64_t n)
      : q_heads_(q_heads), groups_(groups), s_(rows), n_(n), m_(BlocksOf(n)), random_(7) {
    slots_.resize(s_ * m_);
    std::iota(slots_.begin(), slots_.end(), 0);
    std::shuffle(slots_.begin(), slots_.end(), random_);
    MakeTable();
    const int64_t bytes = s_ * m_ * groups_ * kBlockPositions * 2 * kD * 2;
    const int64_t count = std::clamp<int64_t>((3ll << 29) / bytes, 1, 12);
    for (int64_t i = 0; i < count; ++i) MakeLayer(bytes);
    for (int64_t i = 0; i < s_; ++i) {
      rows_.push_back({static_cast<int32_t>(i),
                       static_cast<int32_t>(n_),
                       kBlocks,
                       kTokens,
                       1.0f,
                       DecodeRow::kExact});
      lanes_.push_back(static_cast<int32_t>(i));
      positions_.push_back(static_cast<int32_t>(n_ - 1));
    }
    for (int i = 0; i < 3; ++i) {
      ints_[i].resize(s_ * groups_ * (i == 0 ? m_ : i == 1 ? m_ * kBlockPositions : 4));
    }
    code8_.resize(s_ * q_heads_ * kR);
    scale_.resize(s_ * q_heads_);
    out_.resize(s_ * q_heads_ * kD);
    qkv_.resize(s_ * (q_heads_ + 2 * groups_) * kD);
    q_.resize(s_ * q_heads_ * kD);
    norm_.assign(kD, ToBf16(1.0f));
    cos_sin_.assign(s_ * kD, 0.7f);
    for (bf16& x : qkv_) x = ToBf16(Normal());
  }

  size_t layers() const { return layers_.size(); }

  void Append(CpuOps& ops, size_t layer, bool with_code) {
    AppendKvArgs a{};
    a.qkv = {qkv_.data(), {s_, (q_heads_ + 2 * groups_) * kD}};
    a.q_norm = a.k_norm = {norm_.data(), {kD}};
    a.eps = 1e-6f;
    a.cos_sin = {cos_sin_.data(), {s_, kD}};
    a.lanes = {lanes_.data(), {s_}};
    a.positions = {positions_.data(), {s_}};
    a.q_out = {q_.data(), {s_, q_heads_, kD}};
    a.kv = Kv(layer);
    if (with_code) {
      a.code = table_;
      a.codes = Codes(layer);
      a.turned = Turned();
      a.scale = kScale;
    }
    ops.AppendKv(a);
  }
  void Dense(CpuOps& ops, size_t layer) {
    ops.DecodeAttend({Q(), Kv(layer), Rows(), kScale, Out()});
  }
  void SelectBlocks(CpuOps& ops, size_t layer) {
    ops.SelectBlocks({SlotTable(), Rows(), Codes(layer), Turned(), {}, Chosen()});
  }
  void SelectTokens(CpuOps& ops, size_t layer) {
    ops.SelectTokens({SlotTable(), Rows(), Codes(layer), Turned(), Chosen()});
  }
  void Attend(CpuOps& ops, size_t layer) {
    ops.SparseAttend({Q(), Kv(layer), Rows(), Chosen(), kScale, Out()});
  }

  double DenseBytes() const { return static_cast<double>(s_ * groups_ * n_ * 2 * kD * 2); }
  double SparseBytes() const {
    const int64_t candidates = std::min<int64_t>(n_, kBlocks * kBlockPositions);
    return static_cast<double>(s_ * groups_) *
           static_cast<double>(n_ * kPart + candidates * kPart +
                               std::min<int64_t>(n_, kTokens) * 2 * kD * 2);
  }

 private:
  static constexpr float kScale = 0.0884f;

  float Normal() { return normal_(random_); }
  KvView Kv(size_t i) const {
    return {layers_[i].kv.ViewAt<bf16, 4>(0, {s_ * m_, groups_, kBlockPositions, 2 * kD}),
            SlotTable()};
  }
  KeyCodes Codes(size_t i) const {
    return {
        layers_[i].first.ViewAt<uint32_t, 4>(0, {s_ * m_, groups_, kCodeWords, kBlockPositions}),
        layers_[i].second.ViewAt<uint32_t, 4>(0, {s_ * m_, groups_, kCodeWords, kBlockPositions})};
  }
  View<const int32_t, 2> SlotTable() const { return {slots_.data(), {s_, m_}}; }
  View<const DecodeRow, 1> Rows() const { return {rows_.data(), {s_}}; }
  View<const bf16, 3> Q() const { return {q_.data(), {s_, q_heads_, kD}}; }
  View<bf16, 2> Out() { return {out_.data(), {s_, q_heads_ * kD}}; }
  TurnedQuery Turned() {
    return {{code8_.data(), {s_, q_heads_, kR}}, {scale_.data(), {s_, q_heads_}}};
  }
  Selection Chosen() {
    int32_t* counts = ints_[2].data();
    const std::array<int64_t, 2> shape{s_, groups_};
    return {{ints_[0].data(), {s_, groups_, m_}},
            {counts, shape},
            {ints_[1].data(), {s_, groups_, m_ * kBlockPositions}},
            {counts + s_ * groups_, shape},
            {counts + 2 * s_ * groups_, shape},
            {counts + 3 * s_ * groups_, shape}};
  }

  // Random directions with steps that fit keys of variance 1.
  void MakeTable() {
    encode_.resize(groups_ * kD * kR);
    turn_.resize(groups_ * kD * kR);
    offset_.assign(groups_ * kR, 0.0f);
    for (float& x : encode_) x = Normal() * 0.264f;  // x of std 3 steps
    for (float& x : turn_) x = Normal() * 0.03f;
    table_ = {{encode_.data(), {groups_, kD, kR}},
              {offset_.data(), {groups_, kR}},
              {turn_.data(), {groups_, kD, kR}}};
  }

  void MakeLayer(int64_t bytes) {
    Layer layer;
    layer.kv = Buffer::Allocate(MemoryKind::kHost, bytes).value();
    layer.first = Buffer::Allocate(MemoryKind::kHost, bytes / 64).value();
    layer.second = Buffer::Allocate(MemoryKind::kHost, bytes / 64).value();
    layers_.push_back(std::move(layer));
    std::vector<bf16> pool(1 << 20);
    for (bf16& x : pool) x = ToBf16(Normal());
    auto* data = static_cast<bf16*>(layers_.back().kv.data());
    for (int64_t i = 0; i < bytes / 2; i += 4096) {
      std::copy_n(pool.data() + random_() % (pool.size() - 4096),
                  std::min<int64_t>(4096, bytes / 2 - i),
                  data + i);
    }
    const KvView kv = Kv(layers_.size() - 1);
    const KeyCodes codes = Codes(layers_.size() - 1);
#pragma omp parallel for
    for (int64_t slot = 0; slot < s_ * m_; ++slot) {
      float key[kD], product[kR];
      uint8_t code[kR];
      for (int64_t i = 0; i < groups_ * kBlockPositions; ++i) {
        const int64_t g = i / kBlockPositions, p = i % kBlockPositions;
        for (int64_t d = 0; d < kD; ++d) key[d] = ToFloat(kv.rows(slot, g, p, d));
        EncodeKeyCpu(key, table_, static_cast<int>(g), product, code);
        StoreCode(code, codes, slot, g, p);
      }
    }
  }

  const int64_t q_heads_, groups_, s_, n_, m_;
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  std::vector<Layer> layers_;
  KeyCodeTable table_;
  std::vector<float> encode_, turn_, offset_, scale_, cos_sin_;
  std::vector<int32_t> slots_, lanes_, positions_, ints_[3];
  std::vector<DecodeRow> rows_;
  std::vector<int8_t> code8_;
  std::vector<bf16> q_, qkv_, norm_, out_;
};

void Measure(CpuOps& ops, const char* name, int64_t q_heads, int64_t groups, int64_t s, int64_t n) {
  Problem p(q_heads, groups, s, n);
  std::vector<double> dense, append, blocks, tokens, attend, whole;
  const int repeats =
      static_cast<int>(std::clamp<int64_t>(4'000'000 / (s * groups * n / 64), 9, 60));
  for (int i = -3; i < repeats; ++i) {
    const size_t layer = static_cast<size_t>(i + 3) % p.layers();
    const double d = Microseconds([&] {
      p.Append(ops, layer, false);
      p.Dense(ops, layer);
    });
    const size_t other = (layer + p.layers() / 2) % p.layers();
    const double a = Microseconds([&] { p.Append(ops, other, true); });
    const double b = Microseconds([&] { p.SelectBlocks(ops, other); });
    const double t = Microseconds([&] { p.SelectTokens(ops, other); });
    const double x = Microseconds([&] { p.Attend(ops, other); });
    if (i < 0) continue;  // warm-up
    dense.push_back(d);
    append.push_back(a);
    blocks.push_back(b);
    tokens.push_back(t);
    attend.push_back(x);
    whole.push_back(a + b + t + x);
  }
  const double d = Median(dense), w = Median(whole);
  std::printf(
      "%-9s %2ld %6ld | %9.1f %5.1f | %7.1f = %5.1f + %6.1f + %6.1f + %6.1f | %7.2f %5.1f | "
      "%5.1f\n",
      name,
      s,
      n,
      d,
      p.DenseBytes() / d / 1e3,
      w,
      Median(append),
      Median(blocks),
      Median(tokens),
      Median(attend),
      p.SparseBytes() / 1e6,
      p.SparseBytes() / w / 1e3,
      d / w);
  std::fflush(stdout);
}

}  // namespace
}  // namespace asynctls

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const int64_t max_n = argc > 2 ? std::atoll(argv[2]) : 98304;
  const int64_t max_s = argc > 3 ? std::atoll(argv[3]) : 8;
  asynctls::CpuOps ops(threads);
  const double stream = asynctls::StreamRead(threads);
  std::printf("%d threads, stream read %.1f GB/s; budget %d blocks, %d tokens; medians in us\n",
              threads,
              stream,
              asynctls::kBlocks,
              asynctls::kTokens);
  std::printf(
      "heads      S      n |     dense  GB/s | sparse  = append + blocks + tokens + attend |      "
      "MB  GB/s | ratio\n");
  for (int64_t s : {1, 4, 8}) {
    for (int64_t n : {4096, 8192, 16384, 32768, 65536, 98304}) {
      if (n > max_n || s > max_s) continue;
      asynctls::Measure(ops, "demo 8/2", 8, 2, s, n);
      asynctls::Measure(ops, "8B 32/8", 32, 8, s, n);
    }
  }
  return 0;
}
