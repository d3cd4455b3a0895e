// SPDX-License-Identifier: Apache-2.0
// The parts of `asynctls eval` that need no server: modes, samples, scores.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/base/json.h"

namespace asynctls {

struct EvalMode {
  std::string name;  // as written
  v1::Sparse sparse;
};

// NAME[@BUDGET[/BLOCKS]], NAME one of dense, exact, lagged, bound (exact with the paper's
// selector), level1 (the best budget / 64 blocks with all their tokens), level2 (tokens from all
// blocks). level1 and level2 need a budget and take no blocks. Errors: INVALID_ARGUMENT.
absl::StatusOr<EvalMode> ParseEvalMode(const std::string& text);

struct EvalSample {
  std::string id, task, expected;
  uint64_t length = 0;
  v1::ChatMessages chat;
};

// Lines of {"id","task","length","messages","expected"}; at most `limit` of them (0 = all). Errors:
// NOT_FOUND, INVALID_ARGUMENT naming file and line.
absl::StatusOr<std::vector<EvalSample>> ReadSamples(const std::string& path, uint64_t limit);

// Equal but for blanks at both ends.
bool IsCorrect(const std::string& answer, const std::string& expected);

// The score of one mode. Requests that failed count as samples but not as correct.
class Score {
 public:
  void Add(const EvalSample& sample,
           bool correct,
           const v1::SparseParams& sparse,
           const v1::Usage& usage);
  void AddFailure(const EvalSample& sample);

  uint64_t samples() const { return all_.samples; }
  uint64_t failures() const { return failures_; }
  double accuracy() const { return all_.accuracy(); }
  double kv_read_fraction() const;
  Json ToJson(const EvalMode& mode) const;

 private:
  struct Count {
    uint64_t correct = 0, samples = 0;
    double accuracy() const { return samples > 0 ? static_cast<double>(correct) / samples : 0; }
    void Add(bool right) {
      correct += right;
      ++samples;
    }
  };
  void Count1(const EvalSample& sample, bool correct);

  Count all_;
  std::map<std::string, Count> by_task_;
  std::map<uint64_t, Count> by_length_;
  uint64_t failures_ = 0;
  v1::SparseParams sparse_;  // as the server resolved it
  double read_bytes_ = 0, dense_bytes_ = 0;
};

}  // namespace asynctls
