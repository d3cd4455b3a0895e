// SPDX-License-Identifier: Apache-2.0
// gpu_bench [FILTER] [--shape NAME] [--baseline FILE] [--json FILE]: the operators on one GPU.
// Every figure is the median over replays of a captured graph that walks through enough problems of
// random data to keep the caches cold, beside the machine's limit (its read bandwidth, measured
// first; 800 TFLOP/s for products) and the baseline of the same run (lines of torch_baseline.py in
// FILE). run_gpu.sh runs all of it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/device/buffer.h"
#include "nlohmann/json.hpp"
#include "tests/bench/gpu_limits.h"

namespace asynctls {
namespace {

template <typename T, int N>
struct OnDevice {
  explicit OnDevice(std::array<int64_t, N> shape) {
    int64_t count = 1;
    for (const int64_t s : shape) count *= s;
    auto made = Buffer::Allocate(MemoryKind::kDevice, count * static_cast<int64_t>(sizeof(T)));
    if (!made.ok()) {
      std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
      std::exit(1);
    }
    buffer = *std::move(made);
    view = buffer.ViewAt<T, N>(0, shape);
  }
  void Set(const std::vector<T>& values) {
    CUDA_CHECK(cudaMemcpy(view.data, values.data(), values.size() * sizeof(T), cudaMemcpyDefault));
  }
  // Repeats `pattern` over the memory.
  void Tile(const std::vector<T>& pattern) {
    const int64_t count = static_cast<int64_t>(pattern.size());
    for (int64_t at = 0; at < view.size(); at += count) {
      const int64_t n = std::min(count, view.size() - at);
      if (at == 0) {
        CUDA_CHECK(cudaMemcpy(view.data, pattern.data(), n * sizeof(T), cudaMemcpyDefault));
      } else {
        CUDA_CHECK(cudaMemcpy(view.data + at, view.data, n * sizeof(T), cudaMemcpyDefault));
      }
    }
  }
  Buffer buffer;
  View<T, N> view;
};

std::mt19937 random_source(7);

std::vector<bf16> NormalPattern(int64_t count, float deviation = 1) {
  static std::vector<float> normal = [] {
    std::normal_distribution<float> distribution;
    std::vector<float> values((1 << 20) + 7);
    for (float& v : values) v = distribution(random_source);
    return values;
  }();
  std::vector<bf16> out(static_cast<size_t>(count));
  const size_t start = random_source();
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = ToBf16(normal[(start + i) % normal.size()] * deviation);
  }
  return out;
}

struct Shape {
  int64_t rows, length, q_heads, kv_heads, dim = 128;
  std::string Name() const {
    return std::to_string(rows) + "x" + std::to_string(length / 1024) + "k/" +
           std::to_string(q_heads) + ":" + std::to_string(kv_heads);
  }
  int64_t KvBytes() const { return rows * length * kv_heads * dim * 4; }
  int64_t CodeBytes() const { return rows * length * kv_heads * 8; }
};

// Everything the decode operators of one layer take; `rows` lanes of one length.
struct Problem {
  Problem(const Shape& s, int budget, int keep_blocks)
      : blocks(s.length / kBlockPositions),
        kv({s.rows * blocks, s.kv_heads, kBlockPositions, 2 * s.dim}),
        first({s.rows * blocks, s.kv_heads, kCodeWords, kBlockPositions}),
        second({s.rows * blocks, s.kv_heads, kCodeWords, kBlockPositions}),
        slots({s.rows, blocks}),
        rows({s.rows}),
        lanes({s.rows}),
        positions({s.rows}),
        qkv({s.rows, (s.q_heads + 2 * s.kv_heads) * s.dim}),
        norm({s.dim}),
        cos_sin({s.rows, s.dim}),
        q({s.rows, s.q_heads, s.dim}),
        encode({s.kv_heads, s.dim, kCodeDirections}),
        offset({s.kv_heads, kCodeDirections}),
        code8({s.rows, s.q_heads, kCodeDirections}),
        scale({s.rows, s.q_heads}),
        lag({s.rows, s.kv_heads, blocks + 1}),
        list({s.rows, s.kv_heads, blocks}),
        tokens({s.rows, s.kv_heads, budget}),
        counts({4, s.rows, s.kv_heads}),
        out({s.rows, s.q_heads * s.dim}) {
    kv.Tile(NormalPattern(32 << 20));
    std::vector<uint32_t> words(8 << 20);
    for (uint32_t& w : words) w = static_cast<uint32_t>(random_source());
    first.Tile(words);
    std::rotate(words.begin(), words.begin() + 12345, words.end());
    second.Tile(words);
    std::vector<int32_t> order(static_cast<size_t>(slots.view.size()));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_source);
    slots.Set(order);
    std::vector<DecodeRow> r;
    std::vector<int32_t> l, p;
    for (int i = 0; i < s.rows; ++i) {
      r.push_back(
          {i, static_cast<int32_t>(s.length), keep_blocks, budget, 1.0f, DecodeRow::kExact});
      l.push_back(i);
      p.push_back(static_cast<int32_t>(s.length - 1));
    }
    rows.Set(r);
    lanes.Set(l);
    positions.Set(p);
    qkv.Set(NormalPattern(qkv.view.size()));
    norm.Set(NormalPattern(norm.view.size()));
    std::vector<float> f(static_cast<size_t>(encode.view.size()));
    for (float& v : f) v = static_cast<float>(random_source()) * 0x1p-32f - 0.5f;
    encode.Set(f);
    f.resize(static_cast<size_t>(offset.view.size()));
    offset.Set(f);
    f.assign(static_cast<size_t>(cos_sin.view.size()), 0.7f);
    cos_sin.Set(f);
    const View<int32_t, 3>& c = counts.view;
    selection = {.blocks = list.view,
                 .block_count = c[0],
                 .tokens = tokens.view,
                 .token_count = c[1],
                 .touched = c[2],
                 .nan_heads = c[3]};
    code = {.encode = encode.view, .offset = offset.view, .turn = encode.view};
    codes = {first.view, second.view};
  }

  void Append(CudaOps& ops) {
    ops.AppendKv({.qkv = qkv.view,
                  .q_norm = norm.view,
                  .k_norm = norm.view,
                  .eps = 1e-6f,
                  .cos_sin = cos_sin.view,
                  .lanes = lanes.view,
                  .positions = positions.view,
                  .q_out = q.view,
                  .kv = {kv.view, slots.view},
                  .code = code,
                  .codes = codes,
                  .turned = {code8.view, scale.view},
                  .turn_begin = 0,
                  .scale = kScale});
  }
  void Dense(CudaOps& ops) {
    ops.DecodeAttend({q.view, {kv.view, slots.view}, rows.view, kScale, out.view});
  }
  void Blocks(CudaOps& ops) {
    ops.SelectBlocks(
        {slots.view, rows.view, codes, {code8.view, scale.view}, lag.view, selection});
  }
  void Tokens(CudaOps& ops) {
    ops.SelectTokens({slots.view, rows.view, codes, {code8.view, scale.view}, selection});
  }
  void Sparse(CudaOps& ops) {
    ops.SparseAttend({q.view, {kv.view, slots.view}, rows.view, selection, kScale, out.view});
  }

  static constexpr float kScale = 0.0884f;
  int64_t blocks;
  OnDevice<bf16, 4> kv;
  OnDevice<uint32_t, 4> first, second;
  OnDevice<int32_t, 2> slots;
  OnDevice<DecodeRow, 1> rows;
  OnDevice<int32_t, 1> lanes, positions;
  OnDevice<bf16, 2> qkv;
  OnDevice<bf16, 1> norm;
  OnDevice<float, 2> cos_sin;
  OnDevice<bf16, 3> q;
  OnDevice<float, 3> encode;
  OnDevice<float, 2> offset;
  OnDevice<int8_t, 3> code8;
  OnDevice<float, 2> scale;
  OnDevice<int32_t, 3> lag, list, tokens, counts;
  OnDevice<bf16, 2> out;
  Selection selection;
  KeyCodeTable code;
  KeyCodes codes;
};

class Bench {
 public:
  Bench(std::string filter, const std::string& baseline, const std::string& json)
      : filter_(std::move(filter)) {
    auto made = CudaOps::Create(0,
                                {.decode_rows = 64,
                                 .query_heads = 40,
                                 .kv_heads = 8,
                                 .head_dim = 128,
                                 .max_blocks = 2048});
    if (!made.ok()) {
      std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
      std::exit(1);
    }
    ops_ = *std::move(made);
    std::printf("%s\n", ops_->Describe().c_str());
    std::ifstream in(baseline);
    for (std::string line; std::getline(in, line);) {
      const auto row = nlohmann::json::parse(line, nullptr, false);
      if (row.is_discarded() || !row.contains("name")) continue;
      baselines_[{row["name"], row["shape"]}] = row["ms"];
    }
    if (!json.empty()) json_.open(json);
    CUDA_CHECK(cudaEventCreate(&begin_));
    CUDA_CHECK(cudaEventCreate(&end_));
  }

  CudaOps& ops() { return *ops_; }
  bool Wanted(const std::string& name) const { return name.find(filter_) != std::string::npos; }

  // Median milliseconds of one call of `body`, which makes `calls` of what is measured.
  template <typename Body>
  double Time(int calls, Body body) {
    const uint64_t key = next_key_++;
    ops_->Replay(key, body);  // captured and warm
    ops_->Replay(key, body);
    std::vector<float> times(11);
    for (float& ms : times) {
      CUDA_CHECK(cudaEventRecord(begin_, ops_->stream()));
      ops_->Replay(key, body);
      CUDA_CHECK(cudaEventRecord(end_, ops_->stream()));
      CUDA_CHECK(cudaEventSynchronize(end_));
      CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
    }
    std::nth_element(times.begin(), times.begin() + 5, times.end());
    return times[5] / calls;
  }

  // `bytes` (or operations) in `ms`; `limit` in the same unit per second; baseline: ms of ours or
  // of the named line of the file.
  void Report(const std::string& name,
              const std::string& shape,
              double ms,
              double amount,
              double limit,
              double baseline_ms = 0,
              const char* unit = "GB/s") {
    if (baseline_ms == 0) {
      const auto found = baselines_.find({name, shape});
      if (found != baselines_.end()) baseline_ms = found->second;
    }
    const double rate = amount / ms * 1e-6;  // G per second
    std::printf("%-28s %-16s %9.4f ms %9.1f %s  %5.2f of limit",
                name.c_str(),
                shape.c_str(),
                ms,
                unit[0] == 'T' ? rate * 1e-3 : rate,
                unit,
                rate * 1e9 / limit);
    if (baseline_ms > 0)
      std::printf("  baseline %9.4f ms  ratio %6.2f", baseline_ms, baseline_ms / ms);
    std::printf("\n");
    std::fflush(stdout);
    if (!json_.is_open()) return;
    nlohmann::json row = {
        {"name", name}, {"shape", shape}, {"ms", ms}, {"gb_s", rate}, {"limit", limit * 1e-9}};
    if (baseline_ms > 0) {
      row["baseline"] = baseline_ms;
      row["ratio"] = baseline_ms / ms;
    }
    json_ << row.dump() << "\n" << std::flush;
  }

  double read_limit = 0;  // bytes per second

  void MeasureRead() {
    OnDevice<uint8_t, 1> data({int64_t{4} << 30});
    OnDevice<uint32_t, 1> out({1});
    const double ms = Time(
        1, [&] { LaunchRead(data.view.data, data.view.size(), out.view.data, ops_->stream()); });
    read_limit = static_cast<double>(data.view.size()) / ms * 1e3;
    std::printf("read: %.2f TB/s\n", read_limit * 1e-12);
  }

 private:
  const std::string filter_;
  std::unique_ptr<CudaOps> ops_;
  std::map<std::pair<std::string, std::string>, double> baselines_;
  std::ofstream json_;
  cudaEvent_t begin_, end_;
  uint64_t next_key_ = 1;
};

void DecodeOperators(Bench& bench, const Shape& s) {
  if (!bench.Wanted("decode")) return;
  CudaOps& ops = bench.ops();
  const int64_t bytes = s.KvBytes() + 2 * s.CodeBytes();
  const int sets = static_cast<int>(std::clamp<int64_t>((int64_t{24} << 30) / bytes, 2, 12));
  std::vector<std::unique_ptr<Problem>> problems;
  for (int i = 0; i < sets; ++i) problems.push_back(std::make_unique<Problem>(s, 4096, 64));
  const auto all = [&](auto call) {
    return bench.Time(sets, [&] {
      for (auto& p : problems) call(*p);
    });
  };
  for (auto& p : problems) p->Append(ops);
  ops.Wait();
  const double dense = all([&](Problem& p) { p.Dense(ops); });
  bench.Report("dense_decode", s.Name(), dense, static_cast<double>(s.KvBytes()), bench.read_limit);
  const double blocks = all([&](Problem& p) { p.Blocks(ops); });
  bench.Report(
      "select_blocks", s.Name(), blocks, static_cast<double>(s.CodeBytes()), bench.read_limit);
  const double both = all([&](Problem& p) {
    p.Blocks(ops);
    p.Tokens(ops);
  });
  const double tokens = all([&](Problem& p) { p.Tokens(ops); });
  bench.Report("select_tokens",
               s.Name(),
               tokens,
               static_cast<double>(s.rows * s.kv_heads * 64 * 64 * 16),
               bench.read_limit);
  // What keeping the best costs: all candidates but one are kept, or all, which needs no cut.
  const auto set_budget = [&](int budget) {
    for (auto& p : problems) {
      std::vector<DecodeRow> rows;
      for (int i = 0; i < s.rows; ++i) {
        rows.push_back({i, static_cast<int32_t>(s.length), 64, budget, 1.0f, DecodeRow::kExact});
      }
      p->rows.Set(rows);
    }
  };
  set_budget(64 * 64);
  const double uncut = all([&](Problem& p) { p.Tokens(ops); });
  set_budget(64 * 64 - 1);
  const double cut = all([&](Problem& p) { p.Tokens(ops); });
  set_budget(1024);
  all([&](Problem& p) { p.Tokens(ops); });
  const double candidates = static_cast<double>(s.rows * s.kv_heads * 64 * 64);
  bench.Report("top_k",
               std::to_string(s.rows * s.kv_heads) + "x4096:1024",
               std::max(cut - uncut, 1e-4),
               candidates * 4,
               bench.read_limit);
  const double attend = all([&](Problem& p) { p.Sparse(ops); });
  bench.Report("sparse_attend",
               s.Name(),
               attend,
               static_cast<double>(s.rows * s.kv_heads * 1024 * s.dim * 4),
               bench.read_limit);
  const double append = all([&](Problem& p) { p.Append(ops); });
  bench.Report("append",
               s.Name(),
               append,
               static_cast<double>(s.rows * s.q_heads * s.dim * 4),
               bench.read_limit);
  const auto baseline = dense;
  for (const int budget : {1024, 512}) {
    set_budget(budget);
    const double whole = all([&](Problem& p) {
      p.Append(ops);
      p.Blocks(ops);
      p.Tokens(ops);
      p.Sparse(ops);
    });
    const double moved = static_cast<double>(
        s.CodeBytes() + s.rows * s.kv_heads * (64 * 64 * 16 + int64_t{budget} * s.dim * 4));
    bench.Report(
        "two_level_" + std::to_string(budget), s.Name(), whole, moved, bench.read_limit, baseline);
  }
  std::printf("%-28s %-16s select blocks + tokens %.4f ms\n", "", "", both);
}

void Prefill(Bench& bench, int64_t length, int64_t q_heads, int64_t kv_heads) {
  if (!bench.Wanted("prefill")) return;
  CudaOps& ops = bench.ops();
  const int64_t dim = 128, blocks = length / kBlockPositions;
  OnDevice<bf16, 4> kv({blocks, kv_heads, kBlockPositions, 2 * dim});
  OnDevice<bf16, 3> q({length, q_heads, dim});
  OnDevice<bf16, 2> out({length, q_heads * dim});
  OnDevice<int32_t, 2> slots({1, blocks});
  OnDevice<PrefillSegment, 1> segments({1});
  kv.Tile(NormalPattern(32 << 20));
  q.Tile(NormalPattern((32 << 20) + 512));
  std::vector<int32_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_source);
  slots.Set(order);
  segments.Set({{0, static_cast<int32_t>(length), 0, 0}});
  const double ms = bench.Time(1, [&] {
    ops.PrefillAttend({q.view, {kv.view, slots.view}, segments.view, 0.0884f, out.view});
  });
  const double operations = 2.0 * static_cast<double>(length) * static_cast<double>(length) *
                            static_cast<double>(q_heads * dim);
  bench.Report(
      "prefill", std::to_string(length / 1024) + "k", ms, operations, 800e12, 0, "TFLOP/s");
}

void Products(Bench& bench, int64_t features, int64_t width, int64_t rows, bool decode) {
  if (!bench.Wanted(decode ? "product_decode" : "product")) return;
  CudaOps& ops = bench.ops();
  const int sets =
      static_cast<int>(std::clamp<int64_t>((int64_t{1} << 30) / (features * width * 2), 2, 24));
  std::vector<std::unique_ptr<OnDevice<bf16, 2>>> w;
  for (int i = 0; i < sets; ++i) {
    w.push_back(std::make_unique<OnDevice<bf16, 2>>(std::array<int64_t, 2>{features, width}));
    w.back()->Tile(NormalPattern(8 << 20, 0.02f));
  }
  OnDevice<bf16, 2> x({rows, width}), out({rows, features});
  x.Tile(NormalPattern(rows * width));
  const double ms = bench.Time(sets, [&] {
    for (auto& matrix : w) {
      Matrix m{matrix->view};
      ops.Gemm({.x = x.view, .w = &m, .out = out.view, .decode = decode});
    }
  });
  const std::string shape =
      std::to_string(rows) + "x" + std::to_string(features) + "x" + std::to_string(width);
  if (decode) {
    bench.Report(
        "product_decode", shape, ms, static_cast<double>(features * width * 2), bench.read_limit);
  } else {
    bench.Report("product",
                 shape,
                 ms,
                 2.0 * static_cast<double>(features * width * rows),
                 800e12,
                 0,
                 "TFLOP/s");
  }
}

int Run(int argc, char** argv) {
  std::string filter, only, baseline, json;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--shape") == 0 && i + 1 < argc) {
      only = argv[++i];
    } else if (std::strcmp(argv[i], "--baseline") == 0 && i + 1 < argc) {
      baseline = argv[++i];
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = argv[++i];
    } else {
      filter = argv[i];
    }
  }
  Bench bench(filter, baseline, json);
  bench.MeasureRead();
  for (const auto& s : {Shape{1, 48 << 10, 32, 8},
                        Shape{1, 64 << 10, 32, 8},
                        Shape{1, 96 << 10, 32, 8},
                        Shape{1, 128 << 10, 32, 8},
                        Shape{4, 96 << 10, 32, 8},
                        Shape{8, 32 << 10, 32, 8},
                        Shape{8, 64 << 10, 32, 8},
                        Shape{8, 96 << 10, 32, 8},
                        Shape{8, 128 << 10, 32, 8},
                        Shape{16, 48 << 10, 32, 8},
                        Shape{8, 64 << 10, 40, 8}}) {
    if (only.empty() || only == s.Name()) DecodeOperators(bench, s);
  }
  for (const int64_t length : {32 << 10, 64 << 10, 128 << 10}) Prefill(bench, length, 32, 8);
  for (const int64_t rows : {1, 8, 32}) {
    Products(bench, 6144, 4096, rows, true);
    Products(bench, 4096, 4096, rows, true);
    Products(bench, 24576, 4096, rows, true);
    Products(bench, 4096, 12288, rows, true);
    Products(bench, 151936, 4096, rows, true);
  }
  for (const int64_t rows : {512, 2048, 8192}) {
    Products(bench, 6144, 4096, rows, false);
    Products(bench, 4096, 4096, rows, false);
    Products(bench, 24576, 4096, rows, false);
    Products(bench, 4096, 12288, rows, false);
  }
  return 0;
}

}  // namespace
}  // namespace asynctls

int main(int argc, char** argv) { return asynctls::Run(argc, argv); }
