// SPDX-License-Identifier: Apache-2.0
// Sequence: one accepted request in progress: how far it is, the blocks it holds, and what its next
// rows are. It decides nothing about others; that is the scheduler. Engine thread only.
//
// It has two fronts: `planned`, up to which plans have been made, and `computed`, up to which their
// results are known. Between them are the rows in flight.
//
// A prompt of n tokens with `tail` t is read in two parts: positions [0, n - t) by prefill chunks,
// [n - t, n) by decode rows with explicit tokens, one per step. Whole blocks of the first part are
// the ones that are named and shared. A request for the prompt's log-probabilities names its blocks
// but takes none over: it needs every row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/base/ids.h"
#include "engine/blocks/block_allocator.h"
#include "engine/blocks/block_name.h"
#include "engine/blocks/block_table.h"
#include "engine/scheduler/request.h"
#include "engine/scheduler/request_status.h"

namespace asynctls {

class Sequence {
 public:
  // How its blocks are named: `root` is the name before the first block, for this model and the
  // request's salt. `twin`, where there is one, is a sequence whose names begin with the same root:
  // those of the same prompt are copied instead of computed.
  struct Naming {
    const BlockNamer& namer;
    BlockName root;
    const Sequence* twin = nullptr;
  };

  // The allocator outlives the sequence.
  Sequence(Request request,
           absl::Time arrived,
           uint32_t block_positions,
           BlockAllocator& allocator,
           const Naming& naming);

  const Request& request() const { return *request_; }
  const std::shared_ptr<Request>& shared_request() const { return request_; }

  // Progress.
  uint32_t computed() const { return rows_.empty() ? planned_ : rows_.front().start; }
  uint32_t prefill_left() const { return planned_ < prefill_end_ ? prefill_end_ - planned_ : 0; }
  bool prompt_planned() const { return planned_ >= request_->prompt.size(); }
  bool prompt_done() const { return computed() >= request_->prompt.size(); }
  bool wants_prompt_log_probs() const { return request_->sampling.prompt_log_probs(); }
  // Whether the next plan may have rows of it: it has not ended, and will not for its length by
  // what is in flight.
  bool wants_rows() const { return !finished && samples_planned_ < request_->max_tokens; }
  bool generated_all() const { return usage.completion_tokens == request_->max_tokens; }

  // Blocks. full_blocks: what prompt + max_tokens need; reserved: what of them is not held yet.
  int64_t full_blocks() const { return full_blocks_; }
  int64_t held() const { return static_cast<int64_t>(table_.size()); }
  int64_t reserved() const { return full_blocks_ - held(); }
  // Of the blocks a new sequence would find, those that others hold (they cost nothing).
  int64_t CountHeldHits() const;
  // Takes over the named blocks that follow what is planned, as far as there are any. A hit leaves
  // at least max(1, tail) prompt tokens to compute. Returns the tokens gained.
  uint32_t AdoptPrefix();
  // Whether the block this sequence would compute next is one that `older` is about to compute.
  bool WaitsFor(const Sequence& older) const;

  // Rows of one plan.
  struct Rows {
    uint64_t step;
    uint32_t start, count;
    bool decode, sample;

    uint32_t end() const { return start + count; }
  };
  // Fills `work` with the next `count` rows: a prefill chunk while prefill_left() > 0 (count at
  // most that), else one decode row. Grows the block table and names the blocks that prefill
  // completes: who takes them over has rows in a later plan. Requires: wants_rows().
  void PlanRows(uint64_t step, uint32_t count, v1::LaneWork& work);
  // Its rows in the oldest plan in flight, `step`; null without.
  const Rows* RowsOf(uint64_t step) const {
    return rows_.empty() || rows_.front().step != step ? nullptr : &rows_.front();
  }
  bool in_flight() const { return !rows_.empty(); }
  // The oldest rows in flight are done.
  void CommitRows() { rows_.pop_front(); }
  // No rows in flight will ever be done; nor may names of blocks be trusted from now on.
  void DropRows() { rows_.clear(); }

  RequestStatus Status(absl::Time now) const;

  // Kept by the scheduler.
  std::optional<Lane> lane;     // from admission on
  bool started = false;         // the ranks know the lane
  bool finished = false;        // its client has been told; only rows in flight keep it here
  bool held_back = false;       // waits for the request it follows
  uint32_t overtaken = 0;       // requests behind it in the queue that were admitted before it
  uint32_t log_probs_told = 1;  // prompt positions below have been told their log-probability
  std::string block_heat;       // of its last reported decode row
  RequestUsage usage;
  const absl::Time arrived;
  absl::Time admitted = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
  absl::Time end_asked = absl::InfiniteFuture();  // by Cancel, or its deadline

 private:
  absl::Span<const Token> BlockTokens(size_t block) const;
  void NameBlocks();

  const std::shared_ptr<Request> request_;
  const uint32_t block_positions_;
  const uint32_t prefill_end_;  // first position that goes through the decode path
  const uint32_t shareable_;    // blocks that may be taken over
  const int64_t full_blocks_;
  BlockAllocator& allocator_;
  BlockTable table_;
  std::vector<BlockName> names_;  // of the whole blocks below prefill_end_
  uint32_t planned_ = 0;
  uint32_t samples_planned_ = 0;
  uint32_t named_ = 0;      // leading blocks that are named, or a copy of a named one
  uint32_t announced_ = 0;  // leading blocks the ranks know
  std::deque<Rows> rows_;   // in flight, oldest first
};

}  // namespace asynctls
