// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/ref/philox.h"
#include "kernels/ref/ref_ops.h"

namespace asynctls {
namespace {

// What row s is chosen from.
std::vector<float> Adjusted(const SampleArgs& a, int64_t s) {
  const SampleRow& row = a.rows[s];
  const float* raw = a.logits[s].data;
  std::vector<float> logits(raw, raw + a.vocab);
  for (int32_t id = 0; row.penalised() && id < a.vocab; ++id) {
    float& logit = logits[static_cast<size_t>(id)];
    const uint16_t count = a.history.generated(row.lane, id);
    const bool in_prompt = a.history.prompt(row.lane, id / 32) >> id % 32 & 1;
    if (row.repetition != 1 && (in_prompt || count > 0)) {
      logit = logit > 0 ? logit / row.repetition : logit * row.repetition;
    }
    if (count == 0) continue;
    logit -= row.frequency * count;
    logit -= row.presence;
  }
  for (int32_t e = row.edit_begin; e < row.edit_begin + row.edit_count; ++e) {
    const LogitEdit& edit = a.edits(row.lane, e);
    if (edit.id < a.vocab) logits[static_cast<size_t>(edit.id)] += edit.add;
  }
  return logits;
}

// Ids by logit, largest first, ties to the lower id; NaN last.
std::vector<int32_t> Ranked(const float* logits, int32_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(vocab));
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (std::isnan(logits[b]) && !std::isnan(logits[a]));
  });
  return ids;
}

int32_t Draw(const float* logits, const std::vector<int32_t>& ranked, const SampleRow& row) {
  const float largest = logits[ranked[0]];
  std::vector<int32_t> kept = ranked;
  if (row.top_k > 0) kept.resize(std::min(kept.size(), static_cast<size_t>(row.top_k)));
  auto mass = [&](int32_t id) {
    const double x = (static_cast<double>(logits[id]) - largest) / row.temperature;
    return std::isnan(x) ? 0.0 : std::exp(x);
  };
  if (row.top_p < 1) {
    double total = 0;
    for (int32_t id : kept) total += mass(id);
    double reached = 0;
    size_t count = 0;
    while (count < kept.size() && (count == 0 || reached < row.top_p * total)) {
      reached += mass(kept[count++]);
    }
    kept.resize(count);
  }
  std::erase_if(kept, [&](int32_t id) { return mass(id) < row.min_p; });
  std::sort(kept.begin(), kept.end());
  double total = 0;
  for (int32_t id : kept) total += mass(id);
  const double target = SampleUniform(row.seed, row.index, row.position) * total;
  double reached = 0;
  int32_t last = ranked[0];
  for (int32_t id : kept) {
    if (mass(id) == 0) continue;
    last = id;
    reached += mass(id);
    if (reached > target) break;
  }
  return last;
}

float LogProb(const float* logits, int32_t vocab, int32_t token) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int32_t id = 0; id < vocab; ++id) largest = std::fmax(largest, logits[id]);
  double total = 0;
  for (int32_t id = 0; id < vocab; ++id) {
    if (!std::isnan(logits[id])) total += std::exp(static_cast<double>(logits[id]) - largest);
  }
  return static_cast<float>(logits[token] - largest - std::log(total));
}

}  // namespace

void RefOps::Sample(const SampleArgs& a) {
  for (int64_t s = 0; s < a.rows.dim(0); ++s) {
    const SampleRow& row = a.rows[s];
    if (row.lane < 0) continue;
    const std::vector<float> logits = Adjusted(a, s);
    const std::vector<int32_t> ranked = Ranked(logits.data(), a.vocab);
    const int32_t token = row.temperature == 0 ? ranked[0] : Draw(logits.data(), ranked, row);
    a.token[s] = token;
    a.log_prob[s] = LogProb(a.logits[s].data, a.vocab, token);
    a.last_token[row.lane] = token;
    if (row.penalised() && a.history.generated(row.lane, token) < UINT16_MAX) {
      ++a.history.generated(row.lane, token);
    }
  }
}

}  // namespace asynctls
