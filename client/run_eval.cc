// SPDX-License-Identifier: Apache-2.0
// asynctls eval: every sample under every mode in turn, several samples at a time. The first mode
// of a sample reads its document; the others find it in the prefix cache.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/client.h"
#include "client/commands.h"
#include "client/eval.h"

namespace asynctls {
namespace {

constexpr char kUsage[] =
    "usage: asynctls eval --target HOST:PORT --data F.jsonl [--modes M,M,..] ...\n"
    "Greedy answers, compared with what is expected but for blanks at the ends. A mode is\n"
    "NAME[@BUDGET[/BLOCKS]], NAME one of dense, exact, lagged, bound, level1, level2.\n"
    "Exit code: 0, 1 every request failed, 2 bad usage.\n\n";

const std::vector<FlagSpec>& EvalFlags() {
  static const std::vector<FlagSpec> specs = {
      {"target", "HOST:PORT", "the server"},
      {"data", "FILE", "lines of {id, task, length, messages, expected}"},
      {"modes", "LIST", "with commas between [dense,exact@1024,lagged@1024]"},
      {"tail", "N", "last prompt tokens read through the decode path [0]"},
      {"max-tokens", "N", "longest answer [256]"},
      {"concurrency", "N", "samples at a time [1]"},
      {"limit", "N", "only the first N samples"},
      {"progress", "", "a progress bar on stderr, as on a terminal"},
      {"json", "", "print JSON instead of a table"},
  };
  return specs;
}

struct Plan {
  std::string target;
  std::vector<EvalSample> samples;
  std::vector<EvalMode> modes;
  uint32_t max_tokens = 0;
  int concurrency = 1;
  bool progress = false;
};

absl::StatusOr<Plan> PlanFrom(const Flags& flags) {
  absl::Status required = flags.Require({"target", "data"});
  if (!required.ok()) return required;
  auto tail = flags.Whole("tail", 0, 0, 4096);
  auto max_tokens = flags.Whole("max-tokens", 256, 1, 1 << 20);
  auto concurrency = flags.Whole("concurrency", 1, 1, 256);
  auto limit = flags.Whole("limit", 0, 1, UINT32_MAX);
  for (const auto& number : {tail, max_tokens, concurrency, limit}) {
    if (!number.ok()) return number.status();
  }
  auto samples = ReadSamples(flags.Text("data"), *limit);
  if (!samples.ok()) return samples.status();
  Plan plan{flags.Text("target"), *std::move(samples), {}, 0, 1, false};
  const std::string modes = flags.Text("modes", "dense,exact@1024,lagged@1024");
  for (const std::string& text : std::vector<std::string>(absl::StrSplit(modes, ','))) {
    absl::StatusOr<EvalMode> mode = ParseEvalMode(text);
    if (!mode.ok()) return mode.status();
    if (*tail > 0) mode->sparse.set_tail(static_cast<uint32_t>(*tail));
    plan.modes.push_back(*std::move(mode));
  }
  plan.max_tokens = static_cast<uint32_t>(*max_tokens);
  plan.concurrency = static_cast<int>(*concurrency);
  plan.progress = flags.has("progress") || isatty(STDERR_FILENO) != 0;
  return plan;
}

class Evaluation {
 public:
  explicit Evaluation(Plan plan)
      : plan_(std::move(plan)), client_(plan_.target), scores_(plan_.modes.size()) {}

  void Run() {
    std::vector<std::thread> threads;
    for (int i = 0; i < plan_.concurrency; ++i) {
      threads.emplace_back([this] {
        for (size_t s = next_++; s < plan_.samples.size(); s = next_++) RunSample(s);
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (plan_.progress) absl::FPrintF(stderr, "\r\033[K");
  }

  bool all_failed() const {
    return std::all_of(scores_.begin(), scores_.end(), [](const Score& score) {
      return score.failures() == score.samples();
    });
  }

  void PrintJson() const {
    Json results = Json::array();
    for (size_t m = 0; m < scores_.size(); ++m)
      results.push_back(scores_[m].ToJson(plan_.modes[m]));
    absl::PrintF("%s\n", Json({{"results", results}}).dump(2));
  }

  void PrintTable() const {
    absl::PrintF("%-20s %9s %8s %9s %9s\n", "mode", "accuracy", "samples", "failures", "KV read");
    for (size_t m = 0; m < scores_.size(); ++m) {
      const Score& score = scores_[m];
      absl::PrintF("%-20s %8.2f%% %8d %9d %8.2f%%\n",
                   plan_.modes[m].name,
                   100 * score.accuracy(),
                   score.samples(),
                   score.failures(),
                   100 * score.kv_read_fraction());
    }
  }

 private:
  void RunSample(size_t s) {
    const EvalSample& sample = plan_.samples[s];
    v1::GenerateRequest request;
    *request.mutable_chat() = sample.chat;
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(plan_.max_tokens);
    for (size_t m = 0; m < plan_.modes.size(); ++m) {
      *request.mutable_sparse() = plan_.modes[m].sparse;
      const auto reply = client_.Generate(request, [](const v1::GenerateResponse&) {});
      std::lock_guard lock(mu_);
      if (reply.ok()) {
        scores_[m].Add(sample,
                       IsCorrect(reply->text(), sample.expected),
                       reply->started.sparse(),
                       reply->finished().usage());
      } else {
        scores_[m].AddFailure(sample);
        if (plan_.progress) absl::FPrintF(stderr, "\r\033[K");
        absl::FPrintF(
            stderr, "%s %s: %s\n", sample.id, plan_.modes[m].name, reply.status().ToString());
      }
      ++done_;
      if (plan_.progress) ShowProgress();
    }
  }

  void ShowProgress() const {
    constexpr size_t kWidth = 30;
    const size_t total = plan_.samples.size() * plan_.modes.size();
    const size_t filled = done_ * kWidth / total;
    absl::FPrintF(stderr,
                  "\r[%s%s] %d/%d  %s %.1f%%",
                  std::string(filled, '#'),
                  std::string(kWidth - filled, '.'),
                  done_,
                  total,
                  plan_.modes.front().name,
                  100 * scores_.front().accuracy());
    std::fflush(stderr);
  }

  const Plan plan_;
  Client client_;
  std::atomic<size_t> next_{0};

  std::mutex mu_;  // guards what follows while Run is on
  std::vector<Score> scores_;
  size_t done_ = 0;
};

}  // namespace

int RunEval(const std::vector<std::string>& args) {
  if (std::count(args.begin(), args.end(), "--help") > 0) {
    absl::PrintF("%s%s", kUsage, Flags::Help(EvalFlags()));
    return kExitOk;
  }
  absl::StatusOr<Flags> flags = Flags::Parse(EvalFlags(), args);
  if (!flags.ok()) return Fail(flags.status(), kExitUsage);
  absl::StatusOr<Plan> plan = PlanFrom(*flags);
  if (!plan.ok()) return Fail(plan.status(), kExitUsage);
  Evaluation evaluation(*std::move(plan));
  evaluation.Run();
  if (flags->has("json")) {
    evaluation.PrintJson();
  } else {
    evaluation.PrintTable();
  }
  return evaluation.all_failed() ? kExitFailed : kExitOk;
}

}  // namespace asynctls
