// SPDX-License-Identifier: Apache-2.0
// Checks, admission and fair planning. What follows a step is in scheduler_commit.cc.
#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace asynctls {
namespace {

// Waiting requests looked at per step behind one that does not fit: bounds the prefix look-ups.
constexpr size_t kLookahead = 16;

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

// Of the whole prompt, each id once.
void AddPromptIds(const std::vector<Token>& prompt, uint32_t vocab, v1::LaneStart& start) {
  std::vector<bool> seen(vocab);
  for (const Token id : prompt) {
    if (!seen[id]) start.add_prompt_ids(id);
    seen[id] = true;
  }
}

size_t ClassOf(const Request& request) {
  return static_cast<size_t>(PriorityClassOf(request.priority));
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, Metrics& metrics)
    : config_(config),
      lanes_(std::min(config.max_lanes, config.max_step_tokens)),
      metrics_(metrics),
      allocator_(config.blocks) {
  ASYNCTLS_CHECK(config_.block_positions > 0 && config_.max_step_tokens > 0);
  for (Lane lane = 0; lane < lanes_; ++lane) free_lanes_.insert(lane);
  on_lane_.resize(lanes_);
  metrics_.requests_max_running.Set(lanes_);
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

Sequence* Scheduler::Find(const std::string& id) const {
  for (const Sequences* sequences : {&waiting_, &running_}) {
    for (const auto& sequence : *sequences) {
      if (!sequence->finished && sequence->request().id == id) return sequence.get();
    }
  }
  return nullptr;
}

void Scheduler::Add(Request request, absl::Time arrived) {
  Sequence::Naming naming{namer_, namer_.Root(config_.fingerprint, request.cache_salt)};
  const Sequence* leader = request.follows.empty() ? nullptr : Find(request.follows);
  if (leader != nullptr && leader->request().cache_salt == request.cache_salt) {
    naming.twin = leader;
  }
  auto sequence = std::make_unique<Sequence>(
      std::move(request), arrived, config_.block_positions, allocator_, naming);
  const Request& added = sequence->request();
  sequence->held_back = leader != nullptr && !leader->prompt_planned();
  metrics_.requests_started.Increment();
  metrics_.requests_waiting.Increment();
  metrics_.waiting_by_priority[ClassOf(added)]->Increment();
  metrics_.waiting_prompt_tokens.Increment(static_cast<double>(added.prompt.size()));
  const auto behind = [](int32_t priority, const auto& other) {
    return priority > other->request().priority;
  };
  const auto place = std::upper_bound(waiting_.begin(), waiting_.end(), added.priority, behind);
  waiting_.insert(place, std::move(sequence));
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

// In the order of the queue. One that does not fit lets those behind it pass, max_overtakes of
// them; one that is held back is not in anybody's way.
void Scheduler::Admit(absl::Time now) {
  std::vector<Sequence*> passed;
  for (size_t i = 0; i < waiting_.size() && !free_lanes_.empty() && passed.size() < kLookahead;) {
    const bool closed = std::any_of(passed.begin(), passed.end(), [this](const Sequence* earlier) {
      return earlier->overtaken >= config_.max_overtakes;
    });
    if (closed) return;
    if (waiting_[i]->held_back || !Fits(*waiting_[i])) {
      if (!waiting_[i]->held_back) passed.push_back(waiting_[i].get());
      ++i;
      continue;
    }
    for (Sequence* earlier : passed) ++earlier->overtaken;
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
  if (!sequence->wants_prompt_log_probs()) {
    metrics_.prefix_cache_queries_tokens.Increment(sequence->usage.prompt_tokens);
  }
  AdoptPrefix(*sequence);  // now: what it finds counts in the next one's Fits
  on_lane_[*sequence->lane] = sequence.get();
  running_.push_back(std::move(sequence));
}

void Scheduler::LeaveQueue(const Sequence& sequence) {
  metrics_.requests_waiting.Decrement();
  metrics_.waiting_by_priority[ClassOf(sequence.request())]->Decrement();
  metrics_.waiting_prompt_tokens.Decrement(static_cast<double>(sequence.request().prompt.size()));
  ++left_queue_requests_;
  left_queue_tokens_ += sequence.request().prompt.size();
}

// A plan reads the end of the request's prompt, or none ever will.
void Scheduler::ReleaseFollowers(const std::string& id) {
  for (const auto& sequence : waiting_) {
    if (sequence->held_back && sequence->request().follows == id) sequence->held_back = false;
  }
}

// ------------------------------------------------------------------------------------- planning --

v1::StepPlan Scheduler::Plan(absl::Time now, bool report_blocks) {
  ASYNCTLS_CHECK(in_flight_.size() < config_.plans_in_flight);
  Admit(now);
  std::vector<Sequence*> reading, decoding;
  for (const auto& sequence : running_) {
    if (!sequence->wants_rows()) continue;
    AdoptPrefix(*sequence);
    (sequence->prefill_left() > 0 ? reading : decoding).push_back(sequence.get());
  }
  const auto decode_rows = static_cast<uint32_t>(decoding.size());
  v1::StepPlan plan;
  plan.set_step(step_ + 1);
  const uint32_t prefill_rows = PlanPrefill(reading, PrefillBudget(decode_rows), plan);
  for (Sequence* sequence : decoding) AddWork(*sequence, 1, plan);
  UpdateBlockGauges();
  if (plan.work().empty()) return plan;
  ++step_;
  CountRows(prefill_rows, decode_rows);
  plan.set_report_blocks(report_blocks);
  plan.mutable_released_lanes()->Add(released_.begin(), released_.end());
  released_.clear();
  in_flight_.push_back({.step = step_,
                        .kind = decode_rows == 0    ? StepKind::kPrefill
                                : prefill_rows == 0 ? StepKind::kDecode
                                                    : StepKind::kMixed,
                        .reports_blocks = report_blocks,
                        .planned = now});
  return plan;
}

// Prompt rows of a step with so many decode rows: enough of them for one of every other lane.
uint32_t Scheduler::PrefillBudget(uint32_t decodes) const {
  const uint32_t left = config_.max_step_tokens - decodes;
  if (decodes == 0 || config_.max_mixed_tokens == 0) return left;
  return std::min(left, std::max(config_.max_mixed_tokens, lanes_ - decodes));
}

void Scheduler::AdoptPrefix(Sequence& sequence) {
  const uint32_t found = sequence.AdoptPrefix();
  metrics_.prefix_cache_hits_tokens.Increment(found);
  metrics_.prompt_tokens_cached.Increment(found);
}

// The budget is shared max-min fair: everybody gets an equal share, and what short ones leave goes
// to the longer. A sequence about to compute what an older one is computing waits and takes it
// over.
uint32_t Scheduler::PlanPrefill(const std::vector<Sequence*>& sequences,
                                uint32_t budget,
                                v1::StepPlan& plan) {
  std::vector<Sequence*> reading;
  for (Sequence* sequence : sequences) {
    const bool waits = std::any_of(reading.begin(), reading.end(), [&](const Sequence* older) {
      return sequence->WaitsFor(*older);
    });
    if (!waits) reading.push_back(sequence);
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
  return std::accumulate(rows.begin(), rows.end(), 0u);
}

void Scheduler::CountRows(uint32_t prefill, uint32_t decode) {
  if (prefill > 0) metrics_.step_rows_prefill.Observe(prefill);
  if (decode > 0) metrics_.step_rows_decode.Observe(decode);
  metrics_.iteration_tokens.Observe(prefill + decode);
}

void Scheduler::AddWork(Sequence& sequence, uint32_t rows, v1::StepPlan& plan) {
  ASYNCTLS_CHECK(rows > 0);
  if (!sequence.started) {
    v1::LaneStart& start = *plan.add_starts();
    start.set_lane(*sequence.lane);
    *start.mutable_sampling() = sequence.request().sampling;
    *start.mutable_sparse() = sequence.request().sparse;
    const float repetition = start.sampling().repetition_penalty();
    if (repetition != 0 && repetition != 1) {
      AddPromptIds(sequence.request().prompt, config_.vocab_size, start);
    }
    sequence.started = true;
  }
  const bool reading = !sequence.prompt_planned();
  sequence.PlanRows(plan.step(), rows, *plan.add_work());
  if (reading && sequence.prompt_planned()) ReleaseFollowers(sequence.request().id);
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

std::vector<RequestStatus> Scheduler::Statuses(absl::Time now) const {
  std::vector<RequestStatus> statuses;
  for (const Sequences* sequences : {&running_, &waiting_}) {
    for (const auto& sequence : *sequences) {
      if (!sequence->finished) statuses.push_back(sequence->Status(now));
    }
  }
  return statuses;
}

int Scheduler::running() const {
  return static_cast<int>(
      std::count_if(running_.begin(), running_.end(), [](const auto& s) { return !s->finished; }));
}

}  // namespace asynctls
