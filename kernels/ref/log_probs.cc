// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

// Ids whose logit is a number, largest logit first, ties to the lower id.
std::vector<int32_t> Listed(const float* logits, int32_t vocab) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocab; ++id) {
    if (!std::isnan(logits[id])) ids.push_back(id);
  }
  std::stable_sort(
      ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return ids;
}

}  // namespace

void RefOps::LogProbs(const LogProbsArgs& a) {
  for (int64_t i = 0; i < a.rows.dim(0); ++i) {
    const LogProbRow& row = a.rows[i];
    const float* logits = a.logits[row.row].data;
    const std::vector<int32_t> ids = Listed(logits, a.vocab);
    const float largest = ids.empty() ? -std::numeric_limits<float>::infinity() : logits[ids[0]];
    double total = 0;
    for (const int32_t id : ids) total += std::exp(static_cast<double>(logits[id]) - largest);
    const auto log_prob = [&](int32_t id) {
      return static_cast<float>(logits[id] - largest - std::log(total));
    };
    if (row.token >= 0) a.log_prob[i] = log_prob(row.token);
    for (int32_t k = 0; k < row.top; ++k) {
      const bool listed = k < static_cast<int32_t>(ids.size());
      a.top_ids(i, k) = listed ? ids[static_cast<size_t>(k)] : -1;
      a.top_log_probs(i, k) = listed ? log_prob(a.top_ids(i, k)) : 0;
    }
  }
}

}  // namespace asynctls
