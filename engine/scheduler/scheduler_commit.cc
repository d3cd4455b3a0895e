// SPDX-License-Identifier: Apache-2.0
// The other half of the scheduler: applying a step's result, and ending requests.
#include <algorithm>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/scheduler/scheduler.h"
#include "proto/kv_read.h"

namespace asynctls {
namespace {

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

Outcome OutcomeOf(FinishReason reason, const absl::Status& why) {
  switch (reason) {
    case FinishReason::kStop:
      return Outcome::kStop;
    case FinishReason::kLength:
      return Outcome::kLength;
    case FinishReason::kAborted:
      return absl::IsDeadlineExceeded(why) ? Outcome::kDeadline : Outcome::kAborted;
    case FinishReason::kFailed:
      return Outcome::kFailed;
  }
  return Outcome::kFailed;
}

}  // namespace

// ----------------------------------------------------------------------------------- committing --

Sequence* Scheduler::OnLane(Lane lane) const {
  Sequence* const sequence = lane < on_lane_.size() ? on_lane_[lane] : nullptr;
  return sequence != nullptr && RowsOf(*sequence) != nullptr ? sequence : nullptr;
}

absl::Status Scheduler::CheckResult(const v1::StepResult& result) const {
  const uint64_t step = in_flight_.front().step;
  if (result.step() != step) {
    return absl::InternalError(
        absl::StrCat("workers answered step ", result.step(), " instead of ", step));
  }
  absl::Status status = CheckTokens(result);
  if (status.ok()) status = CheckReads(result);
  if (status.ok()) status = CheckPromptTokens(result);
  return status;
}

bool Scheduler::ValidTop(const v1::TopIds& top) const {
  return top.ids_size() == top.log_probs_size() &&
         std::all_of(top.ids().begin(), top.ids().end(), [this](uint32_t id) {
           return id < config_.vocab_size;
         });
}

absl::Status Scheduler::CheckTokens(const v1::StepResult& result) const {
  std::set<Lane> sampled;
  for (const v1::SampledToken& token : result.sampled()) {
    const Sequence* sequence = OnLane(token.lane());
    if (sequence == nullptr || !RowsOf(*sequence)->sample || token.token() >= config_.vocab_size ||
        !ValidTop(token.top()) || !sampled.insert(token.lane()).second) {
      return absl::InternalError(absl::StrCat(
          "step ", result.step(), ": unexpected token ", token.token(), " on lane ", token.lane()));
    }
  }
  for (const auto& sequence : running_) {
    const Sequence::Rows* rows = RowsOf(*sequence);
    if (rows != nullptr && rows->sample && sampled.count(*sequence->lane) == 0) {
      return absl::InternalError(
          absl::StrCat("step ", result.step(), ": no token for lane ", *sequence->lane));
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckReads(const v1::StepResult& result) const {
  const bool heat = in_flight_.front().reports_blocks;
  for (const v1::LaneRead& read : result.reads()) {
    const Sequence* sequence = OnLane(read.lane());
    const auto blocks = static_cast<int64_t>(read.block_heat().size());
    if (sequence == nullptr || !RowsOf(*sequence)->decode ||
        read.mode() < v1::ATTENTION_MODE_DENSE || read.mode() > v1::ATTENTION_MODE_LAGGED ||
        blocks > (heat ? sequence->held() : 0)) {
      return absl::InternalError(absl::StrCat("step ",
                                              result.step(),
                                              ": unexpected read of lane ",
                                              read.lane(),
                                              ", mode ",
                                              read.mode(),
                                              ", heat of ",
                                              blocks,
                                              " blocks"));
    }
  }
  return absl::OkStatus();
}

// The end of the prompt positions whose log-probability is known once the rows are done (a row says
// it of the position behind it).
uint32_t Scheduler::LogProbsDue(const Sequence& sequence) const {
  return std::min(RowsOf(sequence)->end() + 1, sequence.usage.prompt_tokens);
}

// The rows of a step say something about the tokens behind them. Those of a lane come in order,
// each once, and with the prompt's last row all of them have come.
absl::Status Scheduler::CheckPromptTokens(const v1::StepResult& result) const {
  std::map<Lane, uint64_t> told;
  for (const auto& sequence : running_) {
    if (RowsOf(*sequence) != nullptr && sequence->wants_prompt_log_probs()) {
      told[*sequence->lane] = sequence->log_probs_told;
    }
  }
  const auto refused = [&](Lane lane, uint64_t start, int count) {
    return absl::InternalError(absl::StrCat("step ",
                                            result.step(),
                                            ": unexpected prompt log-probabilities on lane ",
                                            lane,
                                            ": ",
                                            count,
                                            " from position ",
                                            start));
  };
  for (const v1::PromptTokens& tokens : result.prompt_tokens()) {
    const auto it = told.find(tokens.lane());
    const int count = tokens.log_probs_size();
    if (it == told.end() || tokens.start() != it->second || count == 0 ||
        tokens.start() + uint64_t(count) > LogProbsDue(*OnLane(tokens.lane())) ||
        (tokens.top_size() != 0 && tokens.top_size() != count) ||
        !std::all_of(tokens.top().begin(), tokens.top().end(), [this](const v1::TopIds& top) {
          return ValidTop(top);
        })) {
      return refused(tokens.lane(), tokens.start(), count);
    }
    it->second += static_cast<uint64_t>(count);
  }
  for (const auto& [lane, end] : told) {
    const Sequence& sequence = *OnLane(lane);
    const uint32_t size = sequence.usage.prompt_tokens;
    if (RowsOf(sequence)->end() >= size && end != size) return refused(lane, end, 0);
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Commit(const v1::StepResult& result, absl::Time now) {
  ASYNCTLS_CHECK(!in_flight_.empty());
  const absl::Status valid = CheckResult(result);
  if (!valid.ok()) return valid;
  const InFlight& step = in_flight_.front();
  const absl::Time begun = std::max(step.planned, committed_at_);
  metrics_.step_seconds[static_cast<size_t>(step.kind)]->Observe(Seconds(now - begun));
  for (const auto& phase : result.phases()) metrics_.AddStepPhase(phase.name(), phase.seconds());
  CountReads(result);
  std::vector<const v1::SampledToken*> sampled(on_lane_.size());  // by lane
  for (const v1::SampledToken& token : result.sampled()) sampled[token.lane()] = &token;
  for (const auto& sequence : running_) {
    if (RowsOf(*sequence) == nullptr) continue;
    CommitSequence(*sequence, result, sampled[*sequence->lane], now);
  }
  in_flight_.pop_front();
  ++committed_steps_;
  committed_at_ = now;
  DropFinished(now);
  return absl::OkStatus();
}

void Scheduler::CountReads(const v1::StepResult& result) {
  metrics_.selection_nan_heads.Increment(static_cast<double>(result.nan_heads()));
  for (const v1::LaneRead& read : result.reads()) {
    Sequence& sequence = *OnLane(read.lane());
    AddKvRead(sequence.usage.kv_read, read.read());
    if (in_flight_.front().reports_blocks) sequence.block_heat = read.block_heat();
    const auto& counters = metrics_.kv_reads[read.mode() - v1::ATTENTION_MODE_DENSE];
    counters.blocks->Increment(static_cast<double>(read.read().blocks()));
    counters.tokens->Increment(static_cast<double>(read.read().tokens()));
    counters.bytes->Increment(static_cast<double>(read.read().bytes()));
    counters.dense_bytes->Increment(static_cast<double>(read.read().dense_bytes()));
  }
}

void Scheduler::CommitSequence(Sequence& sequence,
                               const v1::StepResult& result,
                               const v1::SampledToken* sampled,
                               absl::Time now) {
  const Sequence::Rows rows = *RowsOf(sequence);
  const uint32_t prompt = sequence.usage.prompt_tokens;
  if (rows.start < prompt) metrics_.prompt_tokens_computed.Increment(rows.count);
  sequence.usage.decode_steps += rows.decode;
  sequence.CommitRows();
  if (sequence.wants_prompt_log_probs()) CommitPromptTokens(sequence, result);
  if (sequence.finished) return;
  if (!rows.decode && rows.end() < prompt) {
    TokenEvent progress;
    progress.prompt_tokens_done = sequence.computed();
    events_.push_back({sequence.shared_request(), std::move(progress)});
  }
  if (sampled != nullptr) CommitToken(sequence, *sampled, now);
}

void Scheduler::CommitPromptTokens(Sequence& sequence, const v1::StepResult& result) {
  for (const v1::PromptTokens& tokens : result.prompt_tokens()) {
    if (tokens.lane() != *sequence.lane) continue;
    sequence.log_probs_told += static_cast<uint32_t>(tokens.log_probs_size());
    if (sequence.finished) continue;
    TokenEvent event;
    event.prompt_log_probs = tokens;
    events_.push_back({sequence.shared_request(), std::move(event)});
  }
}

void Scheduler::CommitToken(Sequence& sequence, const v1::SampledToken& sampled, absl::Time now) {
  const std::vector<Token>& stops = sequence.request().stop_tokens;
  if (std::find(stops.begin(), stops.end(), sampled.token()) != stops.end()) {
    Finish(sequence, FinishReason::kStop, absl::OkStatus(), sampled.token(), now);
    return;
  }
  ++sequence.usage.completion_tokens;
  metrics_.generation_tokens.Increment();
  if (sequence.first_token == absl::InfiniteFuture()) {
    sequence.first_token = now;
    metrics_.time_to_first_token.Observe(Seconds(now - sequence.arrived));
    metrics_.prefill_time.Observe(Seconds(now - sequence.admitted));
  } else {
    metrics_.inter_token_latency.Observe(Seconds(now - sequence.last_token));
  }
  sequence.last_token = now;
  TokenEvent event;
  event.token = sampled.token();
  event.log_prob = sampled.log_prob();
  event.top = sampled.top();
  events_.push_back({sequence.shared_request(), std::move(event)});
  if (sequence.generated_all()) {
    Finish(sequence, FinishReason::kLength, absl::OkStatus(), std::nullopt, now);
  }
}

// --------------------------------------------------------------------------------------- ending --

template <class Predicate>
void Scheduler::End(Predicate which, const Ending& ending) {
  const auto end = [&](Sequence& sequence) {
    if (sequence.finished || !which(sequence)) return;
    if (ending.reason != FinishReason::kFailed) sequence.end_asked = ending.asked;
    Finish(sequence, ending.reason, ending.why, std::nullopt, ending.now);
  };
  for (const auto& sequence : waiting_) end(*sequence);
  for (const auto& sequence : running_) end(*sequence);
  DropFinished(ending.now);
}

void Scheduler::Cancel(const std::string& id,
                       const absl::Status& why,
                       absl::Time asked,
                       absl::Time now) {
  const FinishReason reason = why.ok() ? FinishReason::kStop : FinishReason::kAborted;
  End([&](const Sequence& s) { return s.request().id == id; }, {reason, why, asked, now});
}

void Scheduler::CancelAll(const absl::Status& why, absl::Time now) {
  End([](const Sequence&) { return true; }, {FinishReason::kAborted, why, now, now});
}

void Scheduler::Expire(absl::Time now) {
  const absl::Time first = NextDeadline();
  if (first > now) return;
  End([&](const Sequence& s) { return s.request().deadline <= now; },
      {FinishReason::kAborted, absl::DeadlineExceededError("deadline exceeded"), first, now});
}

absl::Time Scheduler::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& sequence : waiting_) next = std::min(next, sequence->request().deadline);
  for (const auto& sequence : running_) {
    if (!sequence->finished) next = std::min(next, sequence->request().deadline);
  }
  return next;
}

void Scheduler::FailAll(const absl::Status& why, absl::Time now) {
  in_flight_.clear();
  for (const auto& sequence : running_) sequence->DropRows();
  End([](const Sequence&) { return true; }, {FinishReason::kFailed, why, now, now});
}

void Scheduler::Finish(Sequence& sequence,
                       FinishReason reason,
                       const absl::Status& why,
                       std::optional<Token> stop_token,
                       absl::Time now) {
  sequence.finished = true;
  if (sequence.lane.has_value()) {
    metrics_.requests_running.Decrement();
  } else {
    LeaveQueue(sequence);
  }
  if (!sequence.prompt_planned()) ReleaseFollowers(sequence.request().id);
  const absl::Time admitted = std::min(sequence.admitted, now);
  const absl::Time first_token = std::min(sequence.first_token, now);
  TokenEvent::Finished finished;
  finished.reason = reason;
  finished.stop_token = stop_token;
  finished.status = why;
  finished.usage = sequence.usage;
  finished.queue = admitted - sequence.arrived;
  finished.prefill = first_token - admitted;
  finished.decode = now - first_token;
  ObserveFinish(sequence, finished);
  TokenEvent event;
  event.finished = std::move(finished);
  events_.push_back({sequence.shared_request(), std::move(event)});
}

void Scheduler::ObserveFinish(const Sequence& sequence, const TokenEvent::Finished& finished) {
  const uint32_t tokens = sequence.usage.completion_tokens;
  const double running = Seconds(finished.prefill + finished.decode);
  metrics_.finished(OutcomeOf(finished.reason, finished.status)).Increment();
  metrics_.e2e_latency.Observe(Seconds(finished.queue) + running);
  if (sequence.lane.has_value()) metrics_.inference_time.Observe(running);
  if (tokens > 0) metrics_.decode_time.Observe(Seconds(finished.decode));
  if (tokens > 1) {
    metrics_.time_per_output_token.Observe(Seconds(sequence.last_token - sequence.first_token) /
                                           (tokens - 1));
  }
  metrics_.request_prompt_tokens.Observe(sequence.usage.prompt_tokens);
  metrics_.request_generation_tokens.Observe(tokens);
}

// Lets go of finished sequences, except those that a plan in flight names: the ranks may still
// write to their blocks.
void Scheduler::DropFinished(absl::Time now) {
  std::erase_if(waiting_, [&](const auto& sequence) {
    if (sequence->finished) ObserveFreed(*sequence, now);
    return sequence->finished;
  });
  std::erase_if(running_, [&](const auto& sequence) {
    if (!sequence->finished || sequence->in_flight()) return false;
    free_lanes_.insert(*sequence->lane);
    on_lane_[*sequence->lane] = nullptr;
    if (sequence->started) released_.push_back(*sequence->lane);
    ObserveFreed(*sequence, now);
    return true;
  });
  UpdateBlockGauges();
}

void Scheduler::ObserveFreed(const Sequence& sequence, absl::Time now) {
  if (sequence.end_asked == absl::InfiniteFuture()) return;
  metrics_.cancel_to_free.Observe(Seconds(now - sequence.end_asked));
}

}  // namespace asynctls
