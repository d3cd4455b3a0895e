// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/sampling_inputs.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace asynctls {
namespace {

constexpr float kBan = std::numeric_limits<float>::quiet_NaN();

float Repetition(const v1::SamplingParams& s) {
  return s.repetition_penalty() == 0 ? 1.0f : s.repetition_penalty();
}

bool Penalised(const v1::SamplingParams& s) {
  return Repetition(s) != 1 || s.frequency_penalty() != 0 || s.presence_penalty() != 0;
}

bool Suppressed(const v1::SamplingParams& s, uint32_t id) {
  return std::find(s.suppressed_ids().begin(), s.suppressed_ids().end(), id) !=
         s.suppressed_ids().end();
}

}  // namespace

SamplingInputs::Scores SamplingInputs::CarveScores(Carver& carver, int64_t rows) {
  Scores scores;
  scores.rows = carver.Take<LogProbRow, 1>({rows});
  scores.log_prob = carver.Take<float, 1>({rows});
  scores.top_ids = carver.Take<int32_t, 2>({rows, kMaxTopIds});
  scores.top_log_probs = carver.Take<float, 2>({rows, kMaxTopIds});
  return scores;
}

void SamplingInputs::Carve(Carver& carver) {
  const int64_t l = shape_.lanes;
  const int64_t remembered = shape_.samples ? l : 0;
  sampled_rows_ = carver.Take<int32_t, 1>({l});
  samples_ = carver.Take<SampleRow, 1>({l});
  token_ = carver.Take<int32_t, 1>({l});
  log_prob_ = carver.Take<float, 1>({l});
  top_ = CarveScores(carver, l);
  prompt_ = carver.Take<int32_t, 1>({shape_.step_tokens});
  prompt_scores_ = CarveScores(carver, shape_.step_tokens);
  edits_ = carver.Take<LogitEdit, 2>({remembered, kMaxLogitBias + kMaxSuppressedIds});
  history_.generated = carver.Take<uint16_t, 2>({remembered, shape_.vocab});
  history_.prompt = carver.Take<uint32_t, 2>({remembered, (shape_.vocab + 31) / 32});
}

int64_t SamplingInputs::Bytes(const SamplingShape& shape) {
  SamplingInputs measured;
  measured.shape_ = shape;
  Carver carver;
  measured.Carve(carver);
  return carver.bytes();
}

absl::StatusOr<SamplingInputs> SamplingInputs::Create(const SamplingShape& shape) {
  absl::StatusOr<Buffer> arena = Buffer::Allocate(MemoryKind::kHost, Bytes(shape));
  if (!arena.ok()) return arena.status();
  SamplingInputs inputs;
  inputs.shape_ = shape;
  inputs.arena_ = *std::move(arena);
  inputs.lane_edits_.resize(static_cast<size_t>(shape.lanes));
  Carver carver(inputs.arena_);
  inputs.Carve(carver);
  return inputs;
}

std::optional<StartHistoryArgs> SamplingInputs::Start(const v1::LaneStart& start) {
  if (!shape_.samples) return std::nullopt;
  const v1::SamplingParams& s = start.sampling();
  Edits& edits = lane_edits_[start.lane()];
  edits = {};
  if (s.min_tokens() > 0 || !s.logit_bias().empty()) {
    LogitEdit* out = edits_[start.lane()].data;
    for (const uint32_t id : s.suppressed_ids()) {
      *out++ = {.id = static_cast<int32_t>(id), .add = kBan};
      ++edits.bans;
    }
    for (const bool banned : {false, true}) {
      for (const auto& [id, bias] : s.logit_bias()) {
        if (Suppressed(s, id) != banned) continue;
        *out++ = {.id = static_cast<int32_t>(id), .add = bias};
        ++(banned ? edits.banned_biases : edits.biases);
      }
    }
  }
  if (!Penalised(s)) return std::nullopt;
  return StartHistoryArgs{.lane = static_cast<int32_t>(start.lane()),
                          .prompt_ids = {start.prompt_ids().data(), {start.prompt_ids_size()}},
                          .history = history_};
}

void SamplingInputs::PackPrompt(const v1::LaneWork& work,
                                const v1::SamplingParams& sampling,
                                int32_t last_row) {
  const int known = work.tokens_size() - (work.has_next_token() ? 0 : 1);
  if (!sampling.prompt_log_probs() || known <= 0) return;
  const int32_t first_row = last_row + 1 - static_cast<int32_t>(work.count());
  const int64_t begin = prompt_rows_;
  for (int i = 0; i < known; ++i, ++prompt_rows_) {
    const uint32_t token = i + 1 < work.tokens_size() ? work.tokens(i + 1) : work.next_token();
    prompt_[prompt_rows_] = first_row + i;
    prompt_scores_.rows[prompt_rows_] = {
        .row = static_cast<int32_t>(prompt_rows_ % shape_.tile),
        .token = static_cast<int32_t>(token),
        .top = static_cast<int32_t>(sampling.prompt_top_log_probs())};
  }
  spans_.push_back({.lane = work.lane(),
                    .start = work.start() + 1,
                    .begin = begin,
                    .end = prompt_rows_,
                    .top = sampling.prompt_top_log_probs() > 0});
}

void SamplingInputs::PackSample(const v1::LaneWork& work, const Lane& lane, int32_t last_row) {
  const v1::SamplingParams& s = lane.sampling;
  const Edits& edits = lane_edits_[work.lane()];
  const bool bans = lane.sampled <= s.min_tokens();  // `sampled` counts this one
  top_of_.push_back(s.top_log_probs() > 0 ? top_rows_ : -1);
  if (s.top_log_probs() > 0) {
    top_.rows[top_rows_++] = {.row = static_cast<int32_t>(sampled_),
                              .token = -1,
                              .top = static_cast<int32_t>(s.top_log_probs())};
  }
  sampled_rows_[sampled_] = last_row;
  samples_[sampled_++] = {.temperature = s.temperature(),
                          .top_k = s.top_k(),
                          .top_p = s.top_p(),
                          .min_p = s.min_p(),
                          .seed = s.seed(),
                          .index = s.index(),
                          .position = work.start() + work.count(),
                          .lane = static_cast<int32_t>(work.lane()),
                          .repetition = Repetition(s),
                          .frequency = s.frequency_penalty(),
                          .presence = s.presence_penalty(),
                          .edit_begin = bans ? 0 : edits.bans,
                          .edit_count = edits.biases + (bans ? edits.bans : edits.banned_biases)};
}

void SamplingInputs::Pack(const v1::StepPlan& plan, LaneTable& lanes, const StepInputs& inputs) {
  sampled_ = top_rows_ = prompt_rows_ = 0;
  spans_.clear();
  top_of_.clear();
  for (const v1::LaneWork& work : plan.work()) {
    const Lane& lane = lanes.lane(work.lane());
    const int32_t last_row = inputs.last_row(work.lane());
    PackPrompt(work, lane.sampling, last_row);
    if (work.sample()) PackSample(work, lane, last_row);
  }
}

SampleArgs SamplingInputs::Sampling(View<const float, 2> logits,
                                    View<int32_t, 1> last_token) const {
  return {.logits = logits,
          .vocab = shape_.vocab,
          .rows = sample_rows(),
          .token = tokens(),
          .log_prob = log_prob_.Slice(0, sampled_),
          .last_token = last_token,
          .edits = edits_,
          .history = history_};
}

LogProbsArgs SamplingInputs::ArgsOf(const Scores& scores,
                                    int64_t begin,
                                    int64_t count,
                                    View<const float, 2> logits) const {
  return {.logits = logits,
          .vocab = shape_.vocab,
          .rows = scores.rows.Slice(begin, count),
          .log_prob = scores.log_prob.Slice(begin, count),
          .top_ids = scores.top_ids.Slice(begin, count),
          .top_log_probs = scores.top_log_probs.Slice(begin, count)};
}

LogProbsArgs SamplingInputs::TopIds(View<const float, 2> logits) const {
  return ArgsOf(top_, 0, top_rows_, logits);
}

View<const int32_t, 1> SamplingInputs::PromptRows(int64_t tile) const {
  const int64_t begin = tile * shape_.tile;
  return prompt_.Slice(begin, std::min(shape_.tile, prompt_rows_ - begin));
}

LogProbsArgs SamplingInputs::PromptLogProbs(int64_t tile, View<const float, 2> logits) const {
  return ArgsOf(prompt_scores_, tile * shape_.tile, logits.dim(0), logits);
}

void SamplingInputs::FillTop(const Scores& scores, int64_t i, v1::TopIds& top) {
  for (int32_t k = 0; k < scores.rows[i].top; ++k) {
    if (scores.top_ids(i, k) < 0) return;  // there are no more
    top.add_ids(static_cast<uint32_t>(scores.top_ids(i, k)));
    top.add_log_probs(scores.top_log_probs(i, k));
  }
}

void SamplingInputs::Report(v1::StepResult& result) const {
  for (int64_t i = 0; i < sampled_; ++i) {
    v1::SampledToken* sampled = result.add_sampled();
    sampled->set_lane(static_cast<uint32_t>(samples_[i].lane));
    sampled->set_token(static_cast<uint32_t>(token_[i]));
    if (!shape_.samples) continue;
    sampled->set_log_prob(log_prob_[i]);
    const int64_t top = top_of_[static_cast<size_t>(i)];
    if (top >= 0) FillTop(top_, top, *sampled->mutable_top());
  }
  if (!shape_.samples) return;
  for (const PromptSpan& span : spans_) {
    v1::PromptTokens* tokens = result.add_prompt_tokens();
    tokens->set_lane(span.lane);
    tokens->set_start(span.start);
    for (int64_t i = span.begin; i < span.end; ++i) {
      tokens->add_log_probs(prompt_scores_.log_prob[i]);
      if (span.top) FillTop(prompt_scores_, i, *tokens->add_top());
    }
  }
}

}  // namespace asynctls
