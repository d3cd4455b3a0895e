// SPDX-License-Identifier: Apache-2.0
// What the dense CPU ops reach beside what the machine can do, both measured in the same run:
//   dense_bench decode   GB/s of KV of one decode row, beside reading memory
//   dense_bench prefill  GFLOP/s of causal attention, beside oneDNN's bf16 product of 4096^3
//   dense_bench products GFLOP/s (or, for few rows, microseconds and GB/s) of matrix products
//   dense_bench sampling microseconds per row of Qwen3's vocabulary, beside reading the logits once
// Figure and limit are taken in turns and the best of each counts, so that a shared machine
// disturbs both alike.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/cpu/cpu_ops.h"
#include "tests/testing/tensor.h"

namespace asynctls::testing {
namespace {

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs both in turns for about `budget` seconds, at least three times; the best time of each.
std::pair<double, double> BestOf(const std::function<void()>& work,
                                 const std::function<void()>& limit,
                                 double budget) {
  std::pair<double, double> best{1e9, 1e9};
  double spent = 0;
  for (int i = 0; i < 3 || (i < 200 && spent < budget); ++i) {
    const double a = Seconds(work), b = Seconds(limit);
    best = {std::min(best.first, a), std::min(best.second, b)};
    spent += a + b;
  }
  return best;
}

__attribute__((target_clones("avx512f", "avx2", "default"))) uint64_t SumWords(const uint64_t* x,
                                                                               int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

volatile uint64_t sink;

void ReadMemory(const void* data, int64_t bytes, int threads) {
  const int64_t words = bytes / 8 / threads;
  uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
  for (int i = 0; i < threads; ++i) {
    sum += SumWords(static_cast<const uint64_t*>(data) + i * words, words);
  }
  sink = sum;
}

// oneDNN's bf16 product of n^3, in the weight layout it likes best.
class PeakProduct {
 public:
  explicit PeakProduct(int64_t n)
      : n_(n), x_(Normal<bf16, 2>({n, n}, 1)), w_(Normal<bf16, 2>({n, n}, 2)), out_({n, n}) {
    using Desc = dnnl::memory::desc;
    using Tag = dnnl::memory::format_tag;
    const auto type = dnnl::memory::data_type::bf16;
    for (Tag layout : {Tag::ba, Tag::ab, Tag::any}) {
      const Desc plain({n, n}, type, Tag::ab), w({n, n}, type, layout);
      const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(plain, w, plain), engine_);
      products_.push_back({dnnl::matmul(desc),
                           dnnl::memory(plain, engine_, x_.data()),
                           dnnl::memory(desc.weights_desc(), engine_, w_.data()),
                           dnnl::memory(plain, engine_, out_.data())});
    }
  }
  double flops() const { return 2.0 * static_cast<double>(n_ * n_ * n_); }
  // The layouts in turn.
  void Run(int threads) {
    omp_set_num_threads(threads);
    auto& p = products_[next_++ % products_.size()];
    p.product.execute(stream_,
                      {{DNNL_ARG_SRC, p.x}, {DNNL_ARG_WEIGHTS, p.w}, {DNNL_ARG_DST, p.out}});
    stream_.wait();
  }

 private:
  struct One {
    dnnl::matmul product;
    dnnl::memory x, w, out;
  };
  int64_t n_;
  Tensor<bf16, 2> x_, w_, out_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::vector<One> products_;
  size_t next_ = 0;
};

struct Heads {
  const char* name;
  int64_t q, kv;
};
constexpr Heads kHeads[] = {{"demo-qwen3", 8, 2}, {"qwen3-8b", 32, 8}};
constexpr int64_t kDim = 128;

// Memory full of KV, which one lane after the other takes a part of: nothing is warm from the turn
// before.
struct Arena {
  static constexpr int64_t kBytes = int64_t{768} << 20;
  Arena() : memory(Normal<bf16, 1>({kBytes / 2}, 3)) {}
  bf16* Take(int64_t bytes) {
    if (used + bytes > kBytes) used = 0;
    used += bytes;
    return memory.data() + (used - bytes) / 2;
  }
  Tensor<bf16, 1> memory;
  int64_t used = 0;
};

KvView KvAt(bf16* data, int64_t blocks, int64_t kv_heads, const Tensor<int32_t, 2>& slots) {
  return {{data, {blocks, kv_heads, kBlockPositions, 2 * kDim}}, slots.view()};
}

Tensor<int32_t, 2> Slots(int64_t blocks) {
  Tensor<int32_t, 2> slots({1, blocks});
  std::iota(slots.data(), slots.data() + blocks, 0);
  std::shuffle(slots.data(), slots.data() + blocks, std::mt19937(1));
  return slots;
}

void Decode(CpuOps& ops) {
  std::printf("%-11s %8s %9s %9s %9s %6s\n", "heads", "context", "us", "GB/s", "read", "ratio");
  Arena arena;
  for (const Heads& h : kHeads) {
    for (int64_t length : {8192, 16384, 32768, 65536, 98304}) {
      const int64_t blocks = length / kBlockPositions;
      const int64_t bytes = length * h.kv * 2 * kDim * 2;
      const auto slots = Slots(blocks);
      const auto q = Normal<bf16, 3>({1, h.q, kDim}, 1);
      const auto rows = List<DecodeRow>({{.lane = 0,
                                          .length = static_cast<int32_t>(length),
                                          .max_blocks = 0,
                                          .max_tokens = 0,
                                          .top_p = 1,
                                          .lag = DecodeRow::kExact}});
      const Tensor<bf16, 2> out({1, h.q * kDim});
      const auto [time, limit] = BestOf(
          [&] {
            const KvView kv = KvAt(arena.Take(bytes), blocks, h.kv, slots);
            ops.DecodeAttend({q, kv, rows, 0.088f, out});
          },
          [&] { ReadMemory(arena.Take(bytes), bytes, ops.threads()); },
          2.0);
      const double size = static_cast<double>(bytes) / 1e9;
      std::printf("%-11s %8ld %9.0f %9.1f %9.1f %6.2f\n",
                  h.name,
                  static_cast<long>(length),
                  time * 1e6,
                  size / time,
                  size / limit,
                  limit / time);
    }
  }
}

void Prefill(CpuOps& ops) {
  std::printf("%-11s %8s %9s %9s %9s %6s\n", "heads", "tokens", "ms", "GFLOP/s", "peak", "ratio");
  PeakProduct peak(4096);
  for (const Heads& h : kHeads) {
    for (int64_t tokens : {2048, 4096, 8192, 16384}) {
      const int64_t blocks = tokens / kBlockPositions;
      const auto kv = Normal<bf16, 4>({blocks, h.kv, kBlockPositions, 2 * kDim}, 1);
      const auto slots = Slots(blocks);
      const auto q = Normal<bf16, 3>({tokens, h.q, kDim}, 2);
      const auto segments = List<PrefillSegment>(
          {{.row = 0, .count = static_cast<int32_t>(tokens), .lane = 0, .start = 0}});
      const Tensor<bf16, 2> out({tokens, h.q * kDim});
      const auto [time, limit] = BestOf(
          [&] {
            ops.PrefillAttend({q, {kv.view(), slots.view()}, segments, 0.088f, out});
          },
          [&] { peak.Run(ops.threads()); },
          3.0);
      // Two products over the lower triangle.
      const double flops =
          4.0 * static_cast<double>(kDim * h.q * tokens) * static_cast<double>(tokens + 1) / 2;
      std::printf("%-11s %8ld %9.1f %9.0f %9.0f %6.2f\n",
                  h.name,
                  static_cast<long>(tokens),
                  time * 1e3,
                  flops / time / 1e9,
                  peak.flops() / limit / 1e9,
                  flops / time / (peak.flops() / limit));
    }
  }
}

void Products(CpuOps& ops) {
  struct Shape {
    const char* name;
    int64_t columns, depth;
  };
  constexpr Shape kShapes[] = {{"demo qkv", 1536, 256},
                               {"demo o", 256, 1024},
                               {"demo gate+up", 1408, 256},
                               {"demo down", 256, 704},
                               {"demo logits", 2048, 256},
                               {"qwen3-8b qkv", 6144, 4096},
                               {"qwen3-8b o", 4096, 4096},
                               {"qwen3-8b gate+up", 24576, 4096},
                               {"qwen3-8b down", 4096, 12288}};
  std::printf("%-17s %6s %6s %5s %10s %9s %9s %9s %6s\n",
              "product",
              "N",
              "K",
              "T",
              "us",
              "GB/s (w)",
              "GFLOP/s",
              "peak",
              "ratio");
  PeakProduct peak(4096);
  for (const Shape& s : kShapes) {
    Tensor<bf16, 2> w = Normal<bf16, 2>({s.columns, s.depth}, 1);
    Matrix matrix{w.view()};
    ops.Prepare(matrix);
    for (int64_t rows : {1, 8, 512, 2048}) {
      const auto x = Normal<bf16, 2>({rows, s.depth}, 2);
      const Tensor<bf16, 2> out({rows, s.columns});
      const auto [time, limit] = BestOf([&] { ops.Gemm({.x = x, .w = &matrix, .out = out}); },
                                        [&] { peak.Run(ops.threads()); },
                                        1.0);
      const double flops = 2.0 * static_cast<double>(rows * s.columns * s.depth);
      std::printf("%-17s %6ld %6ld %5ld %10.1f %9.1f %9.0f %9.0f %6.2f\n",
                  s.name,
                  static_cast<long>(s.columns),
                  static_cast<long>(s.depth),
                  static_cast<long>(rows),
                  time * 1e6,
                  static_cast<double>(w.size()) * 2 / time / 1e9,
                  flops / time / 1e9,
                  peak.flops() / limit / 1e9,
                  flops / time / (peak.flops() / limit));
    }
  }
}

// One row per lane; an eighth of the ids in each history.
class SamplingRows {
 public:
  static constexpr int32_t kVocab = 151936;

  explicit SamplingRows(int64_t rows)
      : logits_(Normal<float, 2>({rows, kVocab}, 1, 3)),
        rows_({rows}),
        scores_({rows}),
        edits_({rows, 1024}),
        generated_({rows, kVocab}),
        prompt_({rows, kVocab / 32}),
        token_({rows}),
        last_({rows}),
        top_ids_({rows, kMaxTopIds}),
        log_prob_({rows}),
        top_({rows, kMaxTopIds}) {
    generated_.Fill(0);
    prompt_.Fill(0);
    for (int64_t s = 0; s < rows; ++s) {
      for (int32_t id = 0; id < kVocab; id += 64) {
        for (int32_t i = 0; i < 8; ++i) generated_(s, id + i) = 1;
        prompt_(s, id / 32) = 0xff00;
      }
      for (int32_t e = 0; e < 1024; ++e) edits_(s, e) = {.id = e * 100, .add = 0.5f};
      scores_(s) = {.row = static_cast<int32_t>(s), .token = 5, .top = kMaxTopIds};
    }
  }
  const Tensor<float, 2>& logits() const { return logits_; }

  void Sample(CpuOps& ops, SampleRow row) {
    for (int64_t s = 0; s < rows_.size(); ++s) {
      row.lane = static_cast<int32_t>(s);
      rows_(s) = row;
    }
    ops.Sample({logits_, kVocab, rows_, token_, log_prob_, last_, edits_, {generated_, prompt_}});
  }
  void LogProbs(CpuOps& ops) {
    ops.LogProbs({logits_, kVocab, scores_, log_prob_, top_ids_, top_});
  }

 private:
  Tensor<float, 2> logits_;
  Tensor<SampleRow, 1> rows_;
  Tensor<LogProbRow, 1> scores_;
  Tensor<LogitEdit, 2> edits_;
  Tensor<uint16_t, 2> generated_;
  Tensor<uint32_t, 2> prompt_;
  Tensor<int32_t, 1> token_, last_;
  Tensor<int32_t, 2> top_ids_;
  Tensor<float, 1> log_prob_;
  Tensor<float, 2> top_;
};

void Sampling(CpuOps& ops) {
  SampleRow greedy{.temperature = 0,
                   .top_k = 0,
                   .top_p = 1,
                   .min_p = 0,
                   .seed = 1,
                   .index = 0,
                   .position = 0,
                   .lane = 0};
  SampleRow penalised = greedy;
  penalised.repetition = 1.1f;
  penalised.frequency = penalised.presence = 0.1f;
  SampleRow biased = greedy;
  biased.edit_count = 1024;
  SampleRow drawn = greedy;
  drawn.temperature = 0.7f;
  SampleRow cut = drawn;
  cut.top_k = 20;
  cut.top_p = 0.8f;
  SampleRow nucleus = drawn;
  nucleus.top_p = 0.9f;
  const std::pair<const char*, const SampleRow*> kinds[] = {{"greedy", &greedy},
                                                            {"greedy, three penalties", &penalised},
                                                            {"greedy, 1024 biases", &biased},
                                                            {"temperature", &drawn},
                                                            {"temperature, top_k, top_p", &cut},
                                                            {"temperature, top_p", &nucleus},
                                                            {"log_probs, top 20", nullptr}};
  std::printf("%-27s %6s %10s %10s\n", "op", "rows", "us a row", "reading");
  for (const int64_t count : {1, 32}) {
    SamplingRows rows(count);
    for (const auto& [name, row] : kinds) {
      const auto [time, limit] = BestOf(
          [&] { row ? rows.Sample(ops, *row) : rows.LogProbs(ops); },
          [&] { ReadMemory(rows.logits().data(), rows.logits().view().bytes(), ops.threads()); },
          1.0);
      const double scale = 1e6 / static_cast<double>(count);
      std::printf("%-27s %6ld %10.0f %10.0f\n", name, long{count}, time * scale, limit * scale);
    }
  }
}

int Main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "";
  CpuOps ops(argc > 2 ? std::atoi(argv[2]) : omp_get_num_procs());
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (std::strcmp(what, "decode") == 0) {
    Decode(ops);
  } else if (std::strcmp(what, "prefill") == 0) {
    Prefill(ops);
  } else if (std::strcmp(what, "products") == 0) {
    Products(ops);
  } else if (std::strcmp(what, "sampling") == 0) {
    Sampling(ops);
  } else {
    std::fprintf(stderr, "usage: dense_bench decode|prefill|products|sampling [threads]\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace asynctls::testing

int main(int argc, char** argv) { return asynctls::testing::Main(argc, argv); }
