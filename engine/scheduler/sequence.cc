// SPDX-License-Identifier: Apache-2.0
// Progress of one request and the blocks that go with it.
#include "engine/scheduler/sequence.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"
#include "engine/base/check.h"

namespace asynctls {
namespace {

uint32_t PromptSize(const Request& request) { return static_cast<uint32_t>(request.prompt.size()); }

uint32_t TailSize(const Request& request) { return std::min(request.tail, PromptSize(request)); }

uint32_t ShareableBlocks(const Request& request, uint32_t block_positions) {
  if (request.sampling.prompt_log_probs()) return 0;
  return (PromptSize(request) - std::max(1u, TailSize(request))) / block_positions;
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Sequence::Sequence(Request request,
                   absl::Time arrived,
                   uint32_t block_positions,
                   BlockAllocator& allocator,
                   const Naming& naming)
    : arrived(arrived),
      request_(std::make_shared<Request>(std::move(request))),
      block_positions_(block_positions),
      prefill_end_(PromptSize(*request_) - TailSize(*request_)),
      shareable_(ShareableBlocks(*request_, block_positions)),
      full_blocks_(CeilDiv(int64_t{PromptSize(*request_)} + request_->max_tokens, block_positions)),
      allocator_(allocator),
      table_(allocator) {
  usage.prompt_tokens = PromptSize(*request_);
  const size_t blocks = prefill_end_ / block_positions_;
  if (naming.twin != nullptr && naming.twin->request().prompt == request_->prompt) {
    names_ = naming.twin->names_;
  }
  names_.resize(std::min(blocks, names_.size()));
  BlockName previous = names_.empty() ? naming.root : names_.back();
  while (names_.size() < blocks) {
    previous = naming.namer.Next(previous, BlockTokens(names_.size()));
    names_.push_back(previous);
  }
}

absl::Span<const Token> Sequence::BlockTokens(size_t block) const {
  return absl::MakeConstSpan(request_->prompt).subspan(block * block_positions_, block_positions_);
}

int64_t Sequence::CountHeldHits() const {
  int64_t held = 0;
  for (uint32_t block = 0; block < shareable_; ++block) {
    const auto hit = allocator_.Find(names_[block], BlockTokens(block));
    if (!hit.has_value()) break;
    held += allocator_.references(*hit) > 0;
  }
  return held;
}

uint32_t Sequence::AdoptPrefix() {
  const uint32_t before = planned_;
  while (planned_ % block_positions_ == 0 && planned_ / block_positions_ < shareable_) {
    const uint32_t block = planned_ / block_positions_;
    const auto hit = allocator_.Find(names_[block], BlockTokens(block));
    if (!hit.has_value()) break;
    table_.Adopt(*hit);
    planned_ += block_positions_;
    named_ = block + 1;
  }
  usage.cached_tokens += planned_ - before;
  return planned_ - before;
}

bool Sequence::WaitsFor(const Sequence& older) const {
  const uint32_t block = planned_ / block_positions_;
  return planned_ % block_positions_ == 0 && block < shareable_ && block < older.names_.size() &&
         older.planned_ < (block + 1) * block_positions_ && names_[block] == older.names_[block];
}

void Sequence::PlanRows(uint64_t step, uint32_t count, v1::LaneWork& work) {
  ASYNCTLS_CHECK(wants_rows() && lane.has_value());
  const uint32_t prompt = PromptSize(*request_);
  const Rows rows = {.step = step,
                     .start = planned_,
                     .count = count,
                     .decode = prefill_left() == 0,
                     .sample = planned_ + count >= prompt};
  while (table_.size() * block_positions_ < rows.end()) table_.Grow();
  work.set_lane(*lane);
  work.mutable_new_blocks()->Add(table_.ids().begin() + announced_, table_.ids().end());
  announced_ = static_cast<uint32_t>(table_.size());
  work.set_start(rows.start);
  work.set_count(count);
  if (rows.start < prompt) {
    const auto first = request_->prompt.begin() + rows.start;
    work.mutable_tokens()->Add(first, first + count);
    if (request_->sampling.prompt_log_probs() && rows.end() < prompt) {
      work.set_next_token(request_->prompt[rows.end()]);
    }
  }
  work.set_decode(rows.decode);
  work.set_sample(rows.sample);
  rows_.push_back(rows);
  planned_ = rows.end();
  samples_planned_ += rows.sample;
  NameBlocks();
}

void Sequence::NameBlocks() {
  const uint32_t full = std::min(planned_ / block_positions_, static_cast<uint32_t>(names_.size()));
  for (; named_ < full; ++named_) {
    allocator_.SetName(table_.ids()[named_], names_[named_], BlockTokens(named_));
  }
}

RequestStatus Sequence::Status(absl::Time now) const {
  RequestStatus status;
  status.id = request_->id;
  status.phase = !lane.has_value() ? RequestPhase::kWaiting
                 : prompt_done()   ? RequestPhase::kDecode
                                   : RequestPhase::kPrefill;
  status.priority = request_->priority;
  status.prompt = usage.prompt_tokens;
  status.cached = usage.cached_tokens;
  status.computed = computed();
  status.generated = usage.completion_tokens;
  status.blocks = held();
  status.age = now - arrived;
  status.mode = request_->sparse.mode();
  status.budget = request_->sparse.budget();
  status.block_heat = block_heat;
  return status;
}

}  // namespace asynctls
