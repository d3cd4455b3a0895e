// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/sampling_inputs.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/worker/padded_rows.h"

namespace asynctls {
namespace {

constexpr float kBan = std::numeric_limits<float>::quiet_NaN();

float Repetition(const v1::SamplingParams& s) {
  return s.repetition_penalty() == 0 ? 1.0f : s.repetition_penalty();
}

bool Penalised(const v1::SamplingParams& s) {
  return Repetition(s) != 1 || s.frequency_penalty() != 0 || s.presence_penalty() != 0;
}

template <typename T>
absl::Status Keep(absl::StatusOr<T> made, T& member) {
  if (made.ok()) member = *std::move(made);
  return made.status();
}

bool Suppressed(const v1::SamplingParams& s, uint32_t id) {
  return std::find(s.suppressed_ids().begin(), s.suppressed_ids().end(), id) !=
         s.suppressed_ids().end();
}

}  // namespace

int64_t SamplingInputs::Samples(int pass) const {
  if (!shape_.split_passes) return pass == kPromptPass ? shape_.lanes : 0;
  return pass == kPromptPass ? shape_.lanes : PaddedRows(shape_.lanes);
}

int64_t SamplingInputs::Prompts(int pass) const {
  return pass == kPromptPass ? shape_.step_tokens : Samples(pass);
}

void SamplingInputs::CarveScores(int64_t rows, Carver& inputs, Carver& results, Scores& scores) {
  scores.rows = inputs.Take<LogProbRow, 1>({rows});
  scores.log_prob = results.Take<float, 1>({rows});
  scores.top_ids = results.Take<int32_t, 2>({rows, kMaxTopIds});
  scores.top_log_probs = results.Take<float, 2>({rows, kMaxTopIds});
}

void SamplingInputs::Carve(Carver& inputs, Carver& results) {
  for (const int pass : {kDecodePass, kPromptPass}) {
    Pass& p = passes_[pass];
    const int64_t rows = Samples(pass);
    p.sampled_rows = inputs.Take<int32_t, 1>({rows});
    p.samples = inputs.Take<SampleRow, 1>({rows});
    p.token = results.Take<int32_t, 1>({rows});
    p.log_prob = results.Take<float, 1>({rows});
    CarveScores(rows, inputs, results, p.top);
    p.prompt = inputs.Take<int32_t, 1>({Prompts(pass)});
    CarveScores(Prompts(pass), inputs, results, p.prompt_scores);
    if (pass != kDecodePass) continue;
    decode_inputs_ = inputs.bytes();
    decode_results_ = results.bytes();
  }
}

void SamplingInputs::CarveKept(const SamplingShape& shape,
                               Carver& edits,
                               Carver& history,
                               Kept& kept) {
  const int64_t remembered = shape.samples ? shape.lanes : 0;
  kept.edits = edits.Take<LogitEdit, 2>({remembered, kMaxLogitBias + kMaxSuppressedIds});
  kept.history.generated = history.Take<uint16_t, 2>({remembered, shape.vocab});
  kept.history.prompt = history.Take<uint32_t, 2>({remembered, (shape.vocab + 31) / 32});
}

int64_t SamplingInputs::Bytes(const SamplingShape& shape) {
  SamplingInputs measured;
  measured.shape_ = shape;
  Carver carver;
  Kept kept;
  measured.Carve(carver, carver);
  CarveKept(shape, carver, carver, kept);
  return carver.bytes();
}

absl::StatusOr<SamplingInputs> SamplingInputs::Create(const SamplingShape& shape, MemoryKind kind) {
  SamplingInputs made;
  made.shape_ = shape;
  made.kept_ = std::make_shared<Kept>();
  Kept& kept = *made.kept_;
  kept.lane_edits.resize(static_cast<size_t>(shape.lanes));
  Carver inputs, results, edits, history;
  made.Carve(inputs, results);
  CarveKept(shape, edits, history, kept);
  const bool lends = shape.samples && kind == MemoryKind::kDevice;
  const int64_t ids = lends ? shape.prompt_ids * static_cast<int64_t>(sizeof(uint32_t)) : 0;
  Mirror for_inputs, for_results;
  absl::Status status = Keep(Mirror::Create(kind, inputs.bytes()), for_inputs);
  status.Update(Keep(Mirror::Create(kind, results.bytes()), for_results));
  status.Update(Keep(Mirror::Create(kind, edits.bytes()), kept.edits_memory));
  status.Update(Keep(Buffer::Allocate(kind, history.bytes()), kept.history_memory));
  status.Update(Keep(Buffer::Allocate(kind, ids), kept.ids));
  if (!status.ok()) return status;
  Carver into_edits(kept.edits_memory.host()), into_history(kept.history_memory);
  CarveKept(shape, into_edits, into_history, kept);
  made.Use(std::move(for_inputs), std::move(for_results));
  return made;
}

absl::StatusOr<SamplingInputs> SamplingInputs::Twin() const {
  Mirror inputs, results;
  absl::Status status = Keep(inputs_.Twin(), inputs);
  status.Update(Keep(results_.Twin(), results));
  if (!status.ok()) return status;
  SamplingInputs twin;
  twin.shape_ = shape_;
  twin.kept_ = kept_;
  twin.Use(std::move(inputs), std::move(results));
  return twin;
}

void SamplingInputs::Use(Mirror inputs, Mirror results) {
  inputs_ = std::move(inputs);
  results_ = std::move(results);
  Carver into_inputs(inputs_.host()), into_results(results_.host());
  Carve(into_inputs, into_results);
}

View<LogitEdit, 1> SamplingInputs::LaneEdits(uint32_t lane) const {
  const Edits& edits = kept_->lane_edits[lane];
  return kept_->edits[lane].Slice(0, edits.bans + edits.biases + edits.banned_biases);
}

std::optional<StartHistoryArgs> SamplingInputs::Start(const v1::LaneStart& start) {
  if (!shape_.samples) return std::nullopt;
  const v1::SamplingParams& s = start.sampling();
  Edits& edits = kept_->lane_edits[start.lane()];
  edits = {};
  if (s.min_tokens() > 0 || !s.logit_bias().empty()) {
    LogitEdit* out = kept_->edits[start.lane()].data;
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
    kept_->changed.push_back(start.lane());
  }
  if (!Penalised(s)) return std::nullopt;
  return StartHistoryArgs{.lane = static_cast<int32_t>(start.lane()),
                          .prompt_ids = {start.prompt_ids().data(), {start.prompt_ids_size()}},
                          .history = kept_->history};
}

void SamplingInputs::PackPrompt(const v1::LaneWork& work,
                                const v1::SamplingParams& sampling,
                                int pass,
                                int32_t last_row) {
  const int known = work.tokens_size() - (work.has_next_token() ? 0 : 1);
  if (!sampling.prompt_log_probs() || known <= 0) return;
  Pass& p = passes_[pass];
  const int32_t first_row = last_row + 1 - static_cast<int32_t>(work.count());
  const int64_t begin = p.prompts;
  for (int i = 0; i < known; ++i, ++p.prompts) {
    const uint32_t token = i + 1 < work.tokens_size() ? work.tokens(i + 1) : work.next_token();
    p.prompt[p.prompts] = first_row + i;
    p.prompt_scores.rows[p.prompts] = {
        .row = static_cast<int32_t>(p.prompts % shape_.tile),
        .token = static_cast<int32_t>(token),
        .top = static_cast<int32_t>(sampling.prompt_top_log_probs())};
  }
  spans_.push_back({.pass = pass,
                    .lane = work.lane(),
                    .start = work.start() + 1,
                    .begin = begin,
                    .end = p.prompts,
                    .top = sampling.prompt_top_log_probs() > 0});
}

void SamplingInputs::PackSample(const v1::LaneWork& work,
                                const Lane& lane,
                                int pass,
                                int32_t last_row) {
  const v1::SamplingParams& s = lane.sampling;
  const Edits& edits = kept_->lane_edits[work.lane()];
  const bool bans = lane.sampled <= s.min_tokens();  // `sampled` counts this one
  Pass& p = passes_[pass];
  p.top_of.push_back(s.top_log_probs() > 0 ? p.tops : -1);
  if (s.top_log_probs() > 0) {
    p.top.rows[p.tops++] = {.row = static_cast<int32_t>(p.sampled),
                            .token = -1,
                            .top = static_cast<int32_t>(s.top_log_probs())};
  }
  p.sampled_rows[p.sampled] = last_row;
  p.samples[p.sampled++] = {.temperature = s.temperature(),
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

// Pads the sampled rows, and as many as they are of likeliest ids where any are asked for.
void SamplingInputs::Pad(Pass& pass) {
  pass.padded = PaddedRows(pass.sampled);
  for (int64_t i = pass.sampled; i < pass.padded; ++i) {
    pass.sampled_rows[i] = 0;
    pass.samples[i] = {};
    pass.samples[i].lane = -1;
  }
  if (pass.tops == 0) return;
  for (; pass.tops < pass.padded; ++pass.tops) pass.top.rows[pass.tops] = {0, -1, 0};
}

void SamplingInputs::Pack(const v1::StepPlan& plan, LaneTable& lanes, const StepInputs& inputs) {
  for (Pass& pass : passes_) {
    pass.sampled = pass.padded = pass.tops = pass.prompts = 0;
    pass.top_of.clear();
  }
  spans_.clear();
  for (const v1::LaneWork& work : plan.work()) {
    const Lane& lane = lanes.lane(work.lane());
    const int pass = inputs.pass(work);
    const int32_t last_row = inputs.last_row(work.lane());
    PackPrompt(work, lane.sampling, pass, last_row);
    if (work.sample()) PackSample(work, lane, pass, last_row);
  }
  passes_[kPromptPass].padded = passes_[kPromptPass].sampled;
  Pad(passes_[kDecodePass]);
}

View<const int32_t, 1> SamplingInputs::sampled_rows(int pass) const {
  const Pass& p = passes_[pass];
  return inputs_.Device(p.sampled_rows.Slice(0, p.padded));
}

SampleArgs SamplingInputs::Sampling(View<const float, 2> logits,
                                    View<int32_t, 1> last_token,
                                    int pass) const {
  const Pass& p = passes_[pass];
  return {.logits = logits,
          .vocab = shape_.vocab,
          .rows = inputs_.Device(p.samples.Slice(0, p.padded)),
          .token = results_.Device(p.token.Slice(0, p.padded)),
          .log_prob = results_.Device(p.log_prob.Slice(0, p.padded)),
          .last_token = last_token,
          .edits = kept_->edits_memory.Device(kept_->edits),
          .history = kept_->history};
}

LogProbsArgs SamplingInputs::ArgsOf(const Scores& scores,
                                    int64_t begin,
                                    int64_t count,
                                    View<const float, 2> logits) const {
  return {.logits = logits,
          .vocab = shape_.vocab,
          .rows = inputs_.Device(scores.rows.Slice(begin, count)),
          .log_prob = results_.Device(scores.log_prob.Slice(begin, count)),
          .top_ids = results_.Device(scores.top_ids.Slice(begin, count)),
          .top_log_probs = results_.Device(scores.top_log_probs.Slice(begin, count))};
}

LogProbsArgs SamplingInputs::TopIds(View<const float, 2> logits, int pass) const {
  return ArgsOf(passes_[pass].top, 0, passes_[pass].tops, logits);
}

View<const int32_t, 1> SamplingInputs::PromptRows(int64_t tile, int pass) const {
  const Pass& p = passes_[pass];
  const int64_t begin = tile * shape_.tile;
  return inputs_.Device(p.prompt.Slice(begin, std::min(shape_.tile, p.prompts - begin)));
}

LogProbsArgs SamplingInputs::PromptLogProbs(int64_t tile,
                                            View<const float, 2> logits,
                                            int pass) const {
  return ArgsOf(passes_[pass].prompt_scores, tile * shape_.tile, logits.dim(0), logits);
}

void SamplingInputs::FillTop(const Scores& scores, int64_t i, v1::TopIds& top) {
  for (int32_t k = 0; k < scores.rows[i].top; ++k) {
    if (scores.top_ids(i, k) < 0) return;  // there are no more
    top.add_ids(static_cast<uint32_t>(scores.top_ids(i, k)));
    top.add_log_probs(scores.top_log_probs(i, k));
  }
}

void SamplingInputs::Report(v1::StepResult& result) const {
  for (const Pass& pass : passes_) {
    for (int64_t i = 0; i < pass.sampled; ++i) {
      v1::SampledToken* sampled = result.add_sampled();
      sampled->set_lane(static_cast<uint32_t>(pass.samples[i].lane));
      sampled->set_token(static_cast<uint32_t>(pass.token[i]));
      if (!shape_.samples) continue;
      sampled->set_log_prob(pass.log_prob[i]);
      const int64_t top = pass.top_of[static_cast<size_t>(i)];
      if (top >= 0) FillTop(pass.top, top, *sampled->mutable_top());
    }
  }
  if (!shape_.samples) return;
  for (const PromptSpan& span : spans_) {
    const Scores& scores = passes_[span.pass].prompt_scores;
    v1::PromptTokens* tokens = result.add_prompt_tokens();
    tokens->set_lane(span.lane);
    tokens->set_start(span.start);
    for (int64_t i = span.begin; i < span.end; ++i) {
      tokens->add_log_probs(scores.log_prob[i]);
      if (span.top) FillTop(scores, i, *tokens->add_top());
    }
  }
}

}  // namespace asynctls
