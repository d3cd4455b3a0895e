// SPDX-License-Identifier: Apache-2.0
// The other half of the scheduler: applying a step's result, and ending requests.
#include <algorithm>
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
  for (const auto& sequence : running_) {
    if (sequence->lane == lane && sequence->rows_in_flight() > 0) return sequence.get();
  }
  return nullptr;
}

absl::Status Scheduler::CheckResult(const v1::StepResult& result) const {
  if (result.step() != step_) {
    return absl::InternalError(
        absl::StrCat("workers answered step ", result.step(), " instead of ", step_));
  }
  std::set<Lane> sampled;
  for (const v1::SampledToken& token : result.sampled()) {
    const Sequence* sequence = OnLane(token.lane());
    if (sequence == nullptr || !sequence->sample_in_flight() ||
        token.token() >= config_.vocab_size || !sampled.insert(token.lane()).second) {
      return absl::InternalError(absl::StrCat(
          "step ", step_, ": unexpected token ", token.token(), " on lane ", token.lane()));
    }
  }
  for (const auto& sequence : running_) {
    if (sequence->rows_in_flight() > 0 && sequence->sample_in_flight() &&
        sampled.count(*sequence->lane) == 0) {
      return absl::InternalError(
          absl::StrCat("step ", step_, ": no token for lane ", *sequence->lane));
    }
  }
  for (const v1::LaneRead& read : result.reads()) {
    const Sequence* sequence = OnLane(read.lane());
    if (sequence == nullptr || !sequence->decode_in_flight() ||
        read.mode() < v1::ATTENTION_MODE_DENSE || read.mode() > v1::ATTENTION_MODE_LAGGED) {
      return absl::InternalError(absl::StrCat(
          "step ", step_, ": unexpected read of lane ", read.lane(), ", mode ", read.mode()));
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Commit(const v1::StepResult& result, absl::Time now) {
  ASYNCTLS_CHECK(in_flight_);
  const absl::Status valid = CheckResult(result);
  if (!valid.ok()) return valid;
  in_flight_ = false;
  ++committed_steps_;
  metrics_.step_seconds.Observe(Seconds(now - planned_at_));
  for (const auto& phase : result.phases()) metrics_.AddStepPhase(phase.name(), phase.seconds());
  CountReads(result);
  for (const auto& sequence : running_) {
    if (sequence->rows_in_flight() > 0) CommitSequence(*sequence, result, now);
  }
  DropFinished();
  return absl::OkStatus();
}

void Scheduler::CountReads(const v1::StepResult& result) {
  metrics_.selection_nan_heads.Increment(static_cast<double>(result.nan_heads()));
  for (const v1::LaneRead& read : result.reads()) {
    AddKvRead(OnLane(read.lane())->usage.kv_read, read.read());
    const auto& counters = metrics_.kv_reads[read.mode() - v1::ATTENTION_MODE_DENSE];
    counters.blocks->Increment(static_cast<double>(read.read().blocks()));
    counters.tokens->Increment(static_cast<double>(read.read().tokens()));
    counters.bytes->Increment(static_cast<double>(read.read().bytes()));
    counters.dense_bytes->Increment(static_cast<double>(read.read().dense_bytes()));
  }
}

void Scheduler::CommitSequence(Sequence& sequence, const v1::StepResult& result, absl::Time now) {
  if (!sequence.prompt_done()) metrics_.prompt_tokens.Increment(sequence.rows_in_flight());
  sequence.usage.decode_steps += sequence.decode_in_flight();
  sequence.CommitRows();
  if (sequence.finished) return;
  if (!sequence.decode_in_flight() && !sequence.prompt_done()) {
    TokenEvent progress;
    progress.prompt_tokens_done = sequence.computed();
    events_.push_back({sequence.shared_request(), std::move(progress)});
  }
  if (!sequence.sample_in_flight()) return;
  for (const v1::SampledToken& sampled : result.sampled()) {
    if (sampled.lane() == *sequence.lane) CommitToken(sequence, sampled, now);
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
  events_.push_back({sequence.shared_request(), std::move(event)});
  if (sequence.generated_all()) {
    Finish(sequence, FinishReason::kLength, absl::OkStatus(), std::nullopt, now);
  }
}

// --------------------------------------------------------------------------------------- ending --

template <class Predicate>
void Scheduler::End(Predicate which, FinishReason reason, const absl::Status& why, absl::Time now) {
  for (const auto& sequence : waiting_) {
    if (which(*sequence)) Finish(*sequence, reason, why, std::nullopt, now);
  }
  for (const auto& sequence : running_) {
    if (!sequence->finished && which(*sequence)) {
      Finish(*sequence, reason, why, std::nullopt, now);
    }
  }
  DropFinished();
}

void Scheduler::Cancel(const std::string& id, const absl::Status& why, absl::Time now) {
  End([&](const Sequence& s) { return s.request().id == id; }, FinishReason::kAborted, why, now);
}

void Scheduler::CancelAll(const absl::Status& why, absl::Time now) {
  End([](const Sequence&) { return true; }, FinishReason::kAborted, why, now);
}

void Scheduler::Expire(absl::Time now) {
  if (NextDeadline() > now) return;
  End([&](const Sequence& s) { return s.request().deadline <= now; },
      FinishReason::kAborted,
      absl::DeadlineExceededError("deadline exceeded"),
      now);
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
  in_flight_ = false;
  for (const auto& sequence : running_) sequence->DropRows();
  End([](const Sequence&) { return true; }, FinishReason::kFailed, why, now);
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
  metrics_.finished(OutcomeOf(reason, why)).Increment();
  metrics_.e2e_latency.Observe(Seconds(now - sequence.arrived));
  if (sequence.usage.completion_tokens > 0) metrics_.decode_time.Observe(Seconds(finished.decode));
  metrics_.request_prompt_tokens.Observe(sequence.usage.prompt_tokens);
  metrics_.request_generation_tokens.Observe(sequence.usage.completion_tokens);
  TokenEvent event;
  event.finished = std::move(finished);
  events_.push_back({sequence.shared_request(), std::move(event)});
}

// Lets go of finished sequences, except those that the plan in flight names: the ranks may still
// write to their blocks.
void Scheduler::DropFinished() {
  std::erase_if(waiting_, [](const auto& sequence) { return sequence->finished; });
  std::erase_if(running_, [this](const auto& sequence) {
    if (!sequence->finished || sequence->rows_in_flight() > 0) return false;
    free_lanes_.insert(*sequence->lane);
    if (sequence->started) released_.push_back(*sequence->lane);
    return true;
  });
  UpdateBlockGauges();
}

}  // namespace asynctls
