// SPDX-License-Identifier: Apache-2.0
// Scheduler: turns waiting and running requests into StepPlans and applies their StepResults, in
// the same order. With several plans in flight it plans as if no reply ended; a row planned for one
// that did is surplus, and what comes of it is dropped. No threads, no clock (time is passed in),
// no I/O: the same calls give the same plans. Engine thread only, except Check. The rules are
// written down in engine/README.md.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/blocks/block_allocator.h"
#include "engine/blocks/block_name.h"
#include "engine/metrics/metrics.h"
#include "engine/scheduler/request.h"
#include "engine/scheduler/request_status.h"
#include "engine/scheduler/sequence.h"

namespace asynctls {

struct SchedulerConfig {
  // From InitReply.
  uint32_t blocks = 0;
  uint32_t block_positions = 64;
  uint32_t max_context = 0;  // positions of a sequence, prompt and reply
  uint32_t vocab_size = 0;   // prompt ids are below
  std::string fingerprint;   // ModelInfo.fingerprint
  // From ServerConfig. At most max_step_tokens lanes are used, so that every lane gets a row.
  uint32_t max_lanes = 32;
  uint32_t max_step_tokens = 1024;
  // Prompt rows of a step that has decode rows; at least one for each prompt being read. 0 = what
  // max_step_tokens leaves.
  uint32_t max_mixed_tokens = 0;
  uint32_t plans_in_flight = 1;
  uint32_t max_waiting_requests = 256;
  uint64_t max_waiting_prompt_tokens = 4194304;
  // How many requests behind one that does not fit yet may be admitted before it.
  uint32_t max_overtakes = 8;
};

class Scheduler {
 public:
  // A piece of news for the request's on_event.
  struct Event {
    std::shared_ptr<Request> request;
    TokenEvent event;
  };

  // `metrics` outlives the scheduler.
  Scheduler(const SchedulerConfig& config, Metrics& metrics);

  // Any thread: whether the request can ever run. Errors: INVALID_ARGUMENT with field and numbers.
  static absl::Status Check(const SchedulerConfig& config, const Request& request);

  // Takes a checked request whose id no other unfinished one has; `arrived` starts its clocks. The
  // one it follows has been added before.
  void Add(Request request, absl::Time arrived);

  // Ends requests at once, with kAborted and `why`, or kStop where `why` is OK (the caller has seen
  // what ends the reply); unknown ids are ignored. Lane and blocks of one in a plan in flight are
  // kept until that step returns. `asked` <= now: when the caller said so.
  void Cancel(const std::string& id, const absl::Status& why, absl::Time asked, absl::Time now);
  void CancelAll(const absl::Status& why, absl::Time now);
  // Ends those whose deadline has passed, in any phase (kAborted, DEADLINE_EXCEEDED).
  void Expire(absl::Time now);
  absl::Time NextDeadline() const;  // InfiniteFuture without any
  // The workers are dead: ends everything with kFailed and `why`; plans in flight are forgotten.
  void FailAll(const absl::Status& why, absl::Time now);

  // The next step; without `work` when there is nothing to do. Requires: fewer than plans_in_flight
  // of them. A plan with work is in flight until Commit or FailAll. `report_blocks`: the ranks
  // report block heat.
  v1::StepPlan Plan(absl::Time now, bool report_blocks);

  // Applies the result of the oldest plan in flight. Errors: INTERNAL when it does not answer that
  // plan (nothing is changed; FailAll is what is left to do).
  absl::Status Commit(const v1::StepResult& result, absl::Time now);

  // News since the last call, in order.
  std::vector<Event> TakeEvents() { return std::exchange(events_, {}); }

  // A copy of what is live, for a status page.
  std::vector<RequestStatus> Statuses(absl::Time now) const;

  int max_running() const { return static_cast<int>(lanes_); }
  int running() const;  // admitted and not finished
  int waiting() const { return static_cast<int>(waiting_.size()); }
  // Of all requests ever added: those no longer waiting, and their prompt tokens.
  uint64_t left_queue_requests() const { return left_queue_requests_; }
  uint64_t left_queue_tokens() const { return left_queue_tokens_; }
  int64_t committed_steps() const { return committed_steps_; }
  const BlockAllocator& blocks() const { return allocator_; }
  int64_t reserved() const;  // blocks promised to running requests and not held yet

 private:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;
  struct InFlight {
    uint64_t step;
    StepKind kind;
    bool reports_blocks;
    absl::Time planned;
  };

  // Admission.
  Sequence* Find(const std::string& id) const;  // live, or null
  void Admit(absl::Time now);
  bool Fits(const Sequence& sequence) const;
  void Enter(std::unique_ptr<Sequence> sequence, absl::Time now);
  void LeaveQueue(const Sequence& sequence);
  void ReleaseFollowers(const std::string& id);

  // Planning.
  void AdoptPrefix(Sequence& sequence);
  uint32_t PrefillBudget(uint32_t decodes) const;
  // Returns the rows it planned.
  uint32_t PlanPrefill(const std::vector<Sequence*>& sequences,
                       uint32_t budget,
                       v1::StepPlan& plan);
  void CountRows(uint32_t prefill, uint32_t decode);
  void AddWork(Sequence& sequence, uint32_t rows, v1::StepPlan& plan);

  // Committing the oldest plan in flight.
  absl::Status CheckResult(const v1::StepResult& result) const;
  absl::Status CheckTokens(const v1::StepResult& result) const;
  absl::Status CheckReads(const v1::StepResult& result) const;
  absl::Status CheckPromptTokens(const v1::StepResult& result) const;
  uint32_t LogProbsDue(const Sequence& sequence) const;
  bool ValidTop(const v1::TopIds& top) const;
  void CountReads(const v1::StepResult& result);
  // `sampled`: the sequence's token, null without one.
  void CommitSequence(Sequence& sequence,
                      const v1::StepResult& result,
                      const v1::SampledToken* sampled,
                      absl::Time now);
  void CommitPromptTokens(Sequence& sequence, const v1::StepResult& result);
  void CommitToken(Sequence& sequence, const v1::SampledToken& sampled, absl::Time now);

  // Ending. `End` selects unfinished sequences, waiting or running, and finishes them.
  struct Ending {
    FinishReason reason;
    absl::Status why;
    absl::Time asked, now;
  };
  template <class Predicate>
  void End(Predicate which, const Ending& ending);
  void Finish(Sequence& sequence,
              FinishReason reason,
              const absl::Status& why,
              std::optional<Token> stop_token,
              absl::Time now);
  void ObserveFinish(const Sequence& sequence, const TokenEvent::Finished& finished);
  void DropFinished(absl::Time now);
  void ObserveFreed(const Sequence& sequence, absl::Time now);
  void UpdateBlockGauges();
  // What has rows in the oldest plan in flight, and these; null without.
  Sequence* OnLane(Lane lane) const;
  const Sequence::Rows* RowsOf(const Sequence& sequence) const {
    return sequence.RowsOf(in_flight_.front().step);
  }

  const SchedulerConfig config_;
  const uint32_t lanes_;
  const BlockNamer namer_;
  Metrics& metrics_;

  BlockAllocator allocator_;  // outlives the sequences below
  Sequences waiting_;         // by priority, then in order of arrival
  Sequences running_;         // in order of admission; finished ones while their step is in flight
  std::set<Lane> free_lanes_;
  std::vector<Sequence*> on_lane_;  // of running_, by lane; null where the lane is free
  std::vector<Lane> released_;      // to be told with the next plan
  std::vector<Event> events_;
  uint64_t step_ = 0;  // last planned
  int64_t committed_steps_ = 0;
  std::deque<InFlight> in_flight_;  // oldest first
  absl::Time committed_at_ = absl::InfinitePast();
  uint64_t left_queue_requests_ = 0, left_queue_tokens_ = 0;
};

}  // namespace asynctls
