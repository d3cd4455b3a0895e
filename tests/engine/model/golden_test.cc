// SPDX-License-Identifier: Apache-2.0
// The demo model against HuggingFace: logits of the last four positions of every prompt, and 48
// greedy tokens, with full attention and with the two levels at full budget. The reference computes
// in fp32 throughout, we in bf16 with fp32 sums; kTolerance is what that difference may cost.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"
#include "tests/testing/golden.h"
#ifdef ASYNCTLS_TEST_GPU
#include "tests/testing/gpu.h"
#endif
#include "tests/testing/rank_driver.h"

namespace asynctls {
namespace {

// Of one row of logits, against the reference's.
struct Tolerance {
  float worst;     // largest difference
  float relative;  // root mean square of the differences / standard deviation of the row
  float margin;    // a greedy token may differ where the reference's own margin is below this
};
constexpr Tolerance kTolerance = {.worst = 0.20f, .relative = 0.025f, .margin = 0.10f};

struct Difference {
  float worst = 0;
  float relative = 0;
};

Difference Compare(const std::vector<float>& row, const float* want, size_t vocab) {
  double sum = 0, squares = 0, error = 0;
  Difference d;
  for (size_t i = 0; i < vocab; ++i) {
    const float difference = row[i] - want[i];
    d.worst = std::max(d.worst, std::abs(difference));
    error += difference * difference;
    sum += want[i];
    squares += want[i] * want[i];
  }
  const double n = static_cast<double>(vocab);
  d.relative = static_cast<float>(std::sqrt(error / n / (squares / n - sum / n * sum / n)));
  return d;
}

template <Ops B>
class GoldenRun {
 public:
  GoldenRun(RankModel<B>& model, const Golden& golden)
      : model_(model), golden_(golden), driver_(model) {}

  // With full attention, then with the two levels on the blocks that the first run has filled.
  void RunBoth() {
    driver_.Start(0, Attend(v1::ATTENTION_MODE_DENSE));
    Run(0, 0, v1::ATTENTION_MODE_DENSE);
    const size_t full = (golden_.prompt.size() - 4) / kBlockPositions;
    const std::vector<uint32_t> shared(driver_.blocks(0).begin(),
                                       driver_.blocks(0).begin() + static_cast<int64_t>(full));
    driver_.Start(1,
                  Attend(v1::ATTENTION_MODE_EXACT, 20000, 1000),
                  shared,
                  static_cast<uint32_t>(full * kBlockPositions));
    Run(1, full * kBlockPositions, v1::ATTENTION_MODE_EXACT);
    driver_.Release(0);
    driver_.Release(1);
    driver_.Run();
  }

 private:
  // The prompt from position `start` on, its last 3 tokens and the continuation by decode rows.
  void Run(uint32_t lane, size_t start, v1::AttentionMode mode) {
    lane_ = lane;
    mode_ = mode;
    worst_ = {};
    differing_ = 0;
    const std::span<const uint32_t> prompt(golden_.prompt);
    v1::StepResult result =
        driver_.Prompt(lane, prompt.subspan(start, prompt.size() - 3 - start), 512);
    CompareRow(0);
    for (size_t i = 1; i < 4; ++i) {
      driver_.Decode(lane, prompt[prompt.size() - 4 + i]);
      result = driver_.Run();
      CompareRow(i);
    }
    Continue(result.sampled(0).token());
    std::cout << "    " << v1::AttentionMode_Name(mode) << " " << golden_.name << ", "
              << prompt.size() << " tokens: worst " << worst_.worst << ", relative "
              << worst_.relative << ", " << differing_ << " of 48 tokens differ" << std::endl;
  }

  void CompareRow(size_t i) {
    const Difference d =
        Compare(LogitsOf(model_, 0), golden_.logits.data() + i * golden_.vocab, golden_.vocab);
    EXPECT_LE(d.worst, kTolerance.worst) << golden_.name << ", position " << i << " of 4";
    EXPECT_LE(d.relative, kTolerance.relative) << golden_.name << ", position " << i << " of 4";
    worst_.worst = std::max(worst_.worst, d.worst);
    worst_.relative = std::max(worst_.relative, d.relative);
  }

  // Greedy from here on. After a token that differs within the margin, goes on along the reference.
  void Continue(uint32_t token) {
    for (size_t i = 0; i < golden_.greedy.size(); ++i) {
      const uint32_t want = golden_.greedy[i];
      if (token != want) {
        ++differing_;
        std::cout << "    " << golden_.name << ", token " << i << ": " << token << " instead of "
                  << want << ", whose margin is " << golden_.margin[i] << "\n";
        EXPECT_LE(golden_.margin[i], kTolerance.margin) << golden_.name << ", token " << i;
        driver_.Decode(lane_, want);
      } else {
        driver_.Decode(lane_);
      }
      const v1::StepResult result = driver_.Run();
      ASSERT_EQ(result.sampled_size(), 1);
      EXPECT_EQ(result.reads(0).mode(), mode_);
      EXPECT_EQ(result.reads(0).read().tokens(), result.reads(0).read().dense_tokens());
      token = result.sampled(0).token();
    }
  }

  RankModel<B>& model_;
  const Golden& golden_;
  RankDriver<B> driver_;
  uint32_t lane_ = 0;
  v1::AttentionMode mode_ = v1::ATTENTION_MODE_DENSE;
  Difference worst_;
  int differing_ = 0;
};

// Prompts of up to `longest` tokens, with full attention and with the two levels at full budget.
template <Ops B>
void RunGoldens(std::unique_ptr<B> ops, size_t longest) {
  v1::InitRequest request = InitFor(DemoModel());
  request.set_kv_bytes(uint64_t{160} << 20);
  request.set_max_budget(20000);
  request.set_max_context(20000);
  v1::InitReply reply;
  absl::StatusOr<std::unique_ptr<RankModel<B>>> model =
      RankModel<B>::Create(request, std::move(ops), reply);
  ASSERT_TRUE(model.ok()) << model.status();
  SetPlainTables(**model);
  for (const Golden& golden : LoadGoldens()) {
    if (golden.prompt.size() <= longest) GoldenRun<B>(**model, golden).RunBoth();
  }
}

TEST(GoldenTest, Reference) { RunGoldens(std::make_unique<RefOps>(), 477); }

TEST(GoldenTest, Cpu) { RunGoldens(std::make_unique<CpuOps>(2), 16061); }

#ifdef ASYNCTLS_TEST_GPU
TEST(GoldenTest, Gpu) {
  std::unique_ptr<CudaOps> ops = testing::NewGpu();
  if (ops == nullptr) GTEST_SKIP() << "no GPU on this machine";
  RunGoldens(std::move(ops), 16061);
}
#endif

}  // namespace
}  // namespace asynctls
