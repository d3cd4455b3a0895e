// SPDX-License-Identifier: Apache-2.0
// Admission, fair planning, committing and ending of requests.
#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace asynctls {
namespace {

// Waiting requests looked at per step behind one that does not fit: bounds the prefix look-ups.
constexpr int kLookahead = 16;

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

void AddRead(v1::KvRead& sum, const v1::KvRead& read) {
  sum.set_blocks(sum.blocks() + read.blocks());
  sum.set_tokens(sum.tokens() + read.tokens());
  sum.set_bytes(sum.bytes() + read.bytes());
  sum.set_dense_blocks(sum.dense_blocks() + read.dense_blocks());
  sum.set_dense_tokens(sum.dense_tokens() + read.dense_tokens());
  sum.set_dense_bytes(sum.dense_bytes() + read.dense_bytes());
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, Metrics& metrics)
    : config_(config), metrics_(metrics), allocator_(config.blocks) {
  ASYNCTLS_CHECK(config_.block_positions > 0 && config_.max_step_tokens > 0);
  for (Lane lane = 0; lane < std::min(config_.max_lanes, config_.max_step_tokens); ++lane) {
    free_lanes_.insert(lane);
  }
  UpdateBlockGauges();
}

absl::Status Scheduler::Check(const SchedulerConfig& config, const Request& request) {
  const uint64_t prompt = request.prompt.size();
  if (prompt == 0) return absl::InvalidArgumentError("prompt: no tokens");
  if (request.max_tokens == 0) return absl::InvalidArgumentError("max_tokens: must be at least 1");
  const uint64_t length = prompt + request.max_tokens;
  if (length > config.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and max_tokens: ",
                                                   prompt,
                                                   " + ",
                                                   request.max_tokens,
                                                   " = ",
                                                   length,
                                                   " tokens, the context holds ",
                                                   config.max_context));
  }
  const uint64_t blocks = (length + config.block_positions - 1) / config.block_positions;
  if (blocks > config.blocks) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and max_tokens: ",
                                                   prompt,
                                                   " + ",
                                                   request.max_tokens,
                                                   " tokens need ",
                                                   blocks,
                                                   " KV blocks of ",
                                                   config.block_positions,
                                                   ", the server has ",
                                                   config.blocks));
  }
  if (prompt > config.max_waiting_prompt_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt: ",
                     prompt,
                     " tokens, the queue holds max_waiting_prompt_tokens = ",
                     config.max_waiting_prompt_tokens));
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("prompt: id ",
                                                     request.prompt[i],
                                                     " at position ",
                                                     i,
                                                     ", the vocabulary has ",
                                                     config.vocab_size));
    }
  }
  return absl::OkStatus();
}

void Scheduler::Add(Request request, absl::Time arrived) {
  const BlockName root = namer_.Root(config_.fingerprint, request.cache_salt);
  waiting_.push_back(std::make_unique<Sequence>(
      std::move(request), arrived, config_.block_positions, allocator_, namer_, root));
  metrics_.requests_started.Increment();
  metrics_.requests_waiting.Increment();
}

// ------------------------------------------------------------------------------------ admission --

int64_t Scheduler::reserved() const {
  int64_t blocks = 0;
  for (const auto& sequence : running_) {
    if (!sequence->finished) blocks += sequence->reserved();
  }
  return blocks;
}

bool Scheduler::Fits(const Sequence& sequence) const {
  const int64_t room = allocator_.available() - reserved();
  return sequence.full_blocks() <= room ||
         sequence.full_blocks() - sequence.CountHeldHits() <= room;
}

void Scheduler::Admit(absl::Time now) {
  int passed = 0;
  for (size_t i = 0; i < waiting_.size() && !free_lanes_.empty() && passed < kLookahead;) {
    // The first in the queue is the one overtaken most often.
    if (i > 0 && waiting_.front()->overtaken >= config_.max_overtakes) return;
    if (!Fits(*waiting_[i])) {
      ++i, ++passed;
      continue;
    }
    for (size_t earlier = 0; earlier < i; ++earlier) ++waiting_[earlier]->overtaken;
    std::unique_ptr<Sequence> sequence = std::move(waiting_[i]);
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    Enter(std::move(sequence), now);
  }
}

void Scheduler::Enter(std::unique_ptr<Sequence> sequence, absl::Time now) {
  LeaveQueue(*sequence);
  sequence->lane = *free_lanes_.begin();
  free_lanes_.erase(free_lanes_.begin());
  sequence->admitted = now;
  metrics_.requests_running.Increment();
  metrics_.queue_time.Observe(Seconds(now - sequence->arrived));
  metrics_.prefix_cache_queries_tokens.Increment(sequence->usage.prompt_tokens);
  AdoptPrefix(*sequence);  // now: what it finds counts in the next one's Fits
  running_.push_back(std::move(sequence));
}

void Scheduler::LeaveQueue(const Sequence& sequence) {
  metrics_.requests_waiting.Decrement();
  ++left_queue_requests_;
  left_queue_tokens_ += sequence.request().prompt.size();
}

// ------------------------------------------------------------------------------------- planning --

v1::StepPlan Scheduler::Plan(absl::Time now) {
  ASYNCTLS_CHECK(!in_flight_);
  Admit(now);
  uint32_t decodes = 0;
  for (const auto& sequence : running_) {
    AdoptPrefix(*sequence);
    decodes += sequence->prefill_left() == 0;
  }
  v1::StepPlan plan;
  PlanPrefill(config_.max_step_tokens - decodes, plan);
  PlanDecodes(plan);
  UpdateBlockGauges();
  if (plan.work().empty()) return plan;
  plan.set_step(++step_);
  plan.mutable_released_lanes()->Add(released_.begin(), released_.end());
  released_.clear();
  in_flight_ = true;
  planned_at_ = now;
  return plan;
}

void Scheduler::AdoptPrefix(Sequence& sequence) {
  metrics_.prefix_cache_hits_tokens.Increment(sequence.AdoptPrefix());
}

// The budget is shared max-min fair: everybody gets an equal share, and what short ones leave goes
// to the longer. A sequence about to compute what an older one is computing waits and takes it
// over.
void Scheduler::PlanPrefill(uint32_t budget, v1::StepPlan& plan) {
  std::vector<Sequence*> reading;
  for (const auto& sequence : running_) {
    if (sequence->prefill_left() == 0) continue;
    const bool waits = std::any_of(reading.begin(), reading.end(), [&](const Sequence* older) {
      return sequence->WaitsFor(*older);
    });
    if (!waits) reading.push_back(sequence.get());
  }
  std::vector<size_t> by_length(reading.size());
  std::iota(by_length.begin(), by_length.end(), 0);
  std::stable_sort(by_length.begin(), by_length.end(), [&](size_t a, size_t b) {
    return reading[a]->prefill_left() < reading[b]->prefill_left();
  });
  std::vector<uint32_t> rows(reading.size());
  for (size_t i = 0; i < by_length.size(); ++i) {
    const uint32_t share = budget / static_cast<uint32_t>(by_length.size() - i);
    rows[by_length[i]] = std::min(share, reading[by_length[i]]->prefill_left());
    budget -= rows[by_length[i]];
  }
  for (size_t i = 0; i < reading.size(); ++i) AddWork(*reading[i], rows[i], plan);
  const uint32_t total = std::accumulate(rows.begin(), rows.end(), 0u);
  if (total > 0) metrics_.step_rows_prefill.Observe(total);
}

void Scheduler::PlanDecodes(v1::StepPlan& plan) {
  uint32_t rows = 0;
  for (const auto& sequence : running_) {
    if (sequence->prefill_left() > 0) continue;
    AddWork(*sequence, 1, plan);
    ++rows;
  }
  if (rows > 0) metrics_.step_rows_decode.Observe(rows);
}

void Scheduler::AddWork(Sequence& sequence, uint32_t rows, v1::StepPlan& plan) {
  ASYNCTLS_CHECK(rows > 0);
  if (!sequence.started) {
    v1::LaneStart& start = *plan.add_starts();
    start.set_lane(*sequence.lane);
    *start.mutable_sampling() = sequence.request().sampling;
    *start.mutable_sparse() = sequence.request().sparse;
    sequence.started = true;
  }
  sequence.PlanRows(rows, *plan.add_work());
}

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
    AddRead(OnLane(read.lane())->usage.kv_read, read.read());
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

void Scheduler::UpdateBlockGauges() {
  const double total = static_cast<double>(allocator_.total());
  const double used = static_cast<double>(allocator_.used());
  const double reserved = static_cast<double>(this->reserved());
  metrics_.kv_blocks.used.Set(used);
  metrics_.kv_blocks.cached.Set(static_cast<double>(allocator_.cached()));
  metrics_.kv_blocks.free.Set(static_cast<double>(allocator_.free()));
  metrics_.kv_blocks.reserved.Set(reserved);
  metrics_.kv_blocks.total.Set(total);
  metrics_.kv_usage_ratio.Set(total > 0 ? (used + reserved) / total : 0);
}

int Scheduler::running() const {
  return static_cast<int>(
      std::count_if(running_.begin(), running_.end(), [](const auto& s) { return !s->finished; }));
}

}  // namespace asynctls
