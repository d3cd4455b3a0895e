// SPDX-License-Identifier: Apache-2.0
// FakeWorker: a deterministic rank without a model. The next token is a hash of all tokens the lane
// can see through its block table, so wrong blocks, wrong sharing or stale contents change the
// reply. Every plan is checked against the invariants of engine/README.md; a broken one fails the
// step with INTERNAL, which ends all requests with kFailed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/queue.h"
#include "engine/worker/worker.h"

namespace asynctls::testing {

struct FakeOptions {
  uint32_t blocks = 1024;
  uint32_t block_positions = 64;
  uint32_t vocab_size = 1000;
  uint32_t max_context = 1 << 17;
  uint32_t max_lanes = 32;
  uint32_t max_step_tokens = 1024;
  uint32_t plans_in_flight = 1;
  absl::Duration step_time = absl::ZeroDuration();  // every step sleeps this long (FakeWorker)
  int64_t fail_at_step = -1;                        // that step fails with DATA_LOSS (FakeWorker)
};

// Chain hash of a sequence after one more token.
inline uint64_t NextState(uint64_t state, uint32_t token) {
  state ^= token + 0x9e3779b97f4a7c15 + (state << 6) + (state >> 2);
  state *= 0xbf58476d1ce4e5b9;
  return state ^ (state >> 29);
}
inline uint32_t TokenOf(uint64_t state, uint32_t vocab_size) {
  return static_cast<uint32_t>((state >> 20) % vocab_size);
}

// Log-probability of a prompt token behind a state, and of the n-th likeliest id at any place.
inline float PromptLogProbOf(uint64_t state, uint32_t token) {
  return -0.01f * static_cast<float>(NextState(state, token) % 1000);
}
inline float TopLogProbOf(uint32_t n) { return -0.5f - static_cast<float>(n); }

// Sampled sequences of one request differ by their index, greedy ones do not.
inline uint64_t SampledState(uint64_t state, const v1::SamplingParams& sampling) {
  return sampling.temperature() > 0 && sampling.index() > 0 ? NextState(state, sampling.index())
                                                            : state;
}

// What FakeWorker replies to `prompt`: the reference of all tests.
inline std::vector<uint32_t> ExpectedReply(const std::vector<uint32_t>& prompt,
                                           uint32_t max_tokens,
                                           uint32_t vocab_size = FakeOptions().vocab_size,
                                           const v1::SamplingParams& sampling = {}) {
  uint64_t state = 0;
  for (uint32_t token : prompt) state = NextState(state, token);
  std::vector<uint32_t> reply;
  while (reply.size() < max_tokens) {
    reply.push_back(TokenOf(SampledState(state, sampling), vocab_size));
    state = NextState(state, reply.back());
  }
  return reply;
}

// The log-probabilities it says of a prompt: of position 1, then 2, ...
inline std::vector<float> ExpectedPromptLogProbs(const std::vector<uint32_t>& prompt) {
  std::vector<float> log_probs;
  uint64_t state = 0;
  for (size_t i = 0; i + 1 < prompt.size(); ++i) {
    state = NextState(state, prompt[i]);
    log_probs.push_back(PromptLogProbOf(state, prompt[i + 1]));
  }
  return log_probs;
}

// The device half of FakeWorker, without a thread: runs plans and checks them.
class FakeModel {
 public:
  explicit FakeModel(const FakeOptions& options) : options_(options), blocks_(options.blocks) {}

  absl::StatusOr<v1::StepResult> Run(const v1::StepPlan& plan) {
    error_.clear();
    v1::StepResult result;
    result.set_step(plan.step());
    Require(plan.step() == ++step_, "steps are numbered from 1 without gaps");
    Require(plan.work_size() > 0, "a plan has work");
    for (uint32_t lane : plan.released_lanes()) Release(lane);
    for (const v1::LaneStart& start : plan.starts()) Start(start);
    CheckShape(plan);
    for (const v1::LaneWork& work : plan.work()) {
      if (error_.empty()) Work(work, plan.report_blocks(), result);
    }
    if (!error_.empty()) {
      return absl::InternalError(absl::StrCat("plan ",
                                              plan.step(),
                                              " breaks a rule: ",
                                              error_,
                                              "; ",
                                              plan.ShortDebugString().substr(0, 2000)));
    }
    v1::StepResult::Phase& phase = *result.add_phases();
    phase.set_name("other");
    phase.set_seconds(1e-3);
    return result;
  }

 private:
  struct Row {
    bool written = false;
    bool by_prefill = false;
    uint64_t state = 0;  // chain hash up to and with this position
  };
  struct Block {
    int lanes = 0;  // that have it in their table
    std::vector<Row> rows;
  };
  struct LaneState {
    v1::SamplingParams sampling;
    v1::SparseParams sparse;
    std::vector<uint32_t> table;
    uint32_t end = 0;  // positions written or adopted
    std::optional<uint32_t> last_token;
  };

  void Require(bool condition, const std::string& rule) {
    if (!condition && error_.empty()) error_ = rule;
  }

  void Release(uint32_t lane) {
    const auto it = lanes_.find(lane);
    Require(it != lanes_.end(), absl::StrCat("released lane ", lane, " was started"));
    if (it == lanes_.end()) return;
    for (uint32_t block : it->second.table) --blocks_[block].lanes;
    lanes_.erase(it);
  }

  void Start(const v1::LaneStart& start) {
    Require(start.lane() < options_.max_lanes, "lanes are below max_lanes");
    Require(lanes_.count(start.lane()) == 0,
            absl::StrCat("lane ", start.lane(), " is free when started"));
    LaneState& lane = lanes_[start.lane()];
    lane.sampling = start.sampling();
    lane.sparse = start.sparse();
    const float penalty = start.sampling().repetition_penalty();
    Require((start.prompt_ids_size() > 0) == (penalty != 0 && penalty != 1),
            "the prompt's ids come where there is a repetition penalty");
    const std::set<uint32_t> ids(start.prompt_ids().begin(), start.prompt_ids().end());
    Require(ids.size() == static_cast<size_t>(start.prompt_ids_size()), "each id comes once");
  }

  void CheckShape(const v1::StepPlan& plan) {
    uint64_t rows = 0;
    std::set<uint32_t> seen;
    bool decodes = false;
    for (const v1::LaneWork& work : plan.work()) {
      rows += work.count();
      decodes |= work.decode();
      Require(lanes_.count(work.lane()) == 1, absl::StrCat("lane ", work.lane(), " was started"));
      Require(seen.insert(work.lane()).second, "a lane works once per step");
      Require(work.decode() || !decodes, "prefill work comes before decode work");
      Require(work.count() >= 1, "work has rows");
      Require(!work.decode() || work.count() == 1, "decode work is one row");
    }
    for (const v1::LaneStart& start : plan.starts()) {
      Require(seen.count(start.lane()) == 1, "a started lane has work in the same step");
    }
    Require(rows <= options_.max_step_tokens, "rows are within max_step_tokens");
  }

  void Work(const v1::LaneWork& work, bool report_blocks, v1::StepResult& result) {
    LaneState& lane = lanes_[work.lane()];
    AppendBlocks(work, lane);
    if (!error_.empty()) return;
    for (uint32_t i = 0; i < work.count() && error_.empty(); ++i) WriteRow(work, i, lane);
    if (!error_.empty()) return;
    if (work.decode()) ReportRead(work, report_blocks, lane, result);
    if (lane.sampling.prompt_log_probs()) ReportPrompt(work, lane, result);
    if (work.sample()) {
      const uint64_t state = RowAt(lane, lane.end - 1).state;
      lane.last_token = TokenOf(SampledState(state, lane.sampling), options_.vocab_size);
      v1::SampledToken& sampled = *result.add_sampled();
      sampled.set_lane(work.lane());
      sampled.set_token(*lane.last_token);
      sampled.set_log_prob(-0.5f);
      AddTop(*lane.last_token, lane.sampling.top_log_probs(), *sampled.mutable_top());
    }
  }

  // `first` and the ids behind it.
  void AddTop(uint32_t first, uint32_t count, v1::TopIds& top) {
    for (uint32_t n = 0; n < count; ++n) {
      top.add_ids((first + n) % options_.vocab_size);
      top.add_log_probs(TopLogProbOf(n));
    }
  }

  // Of the prompt tokens behind the rows.
  void ReportPrompt(const v1::LaneWork& work, const LaneState& lane, v1::StepResult& result) {
    std::vector<uint32_t> behind(work.tokens().begin(), work.tokens().end());
    if (!behind.empty()) behind.erase(behind.begin());
    if (work.has_next_token()) behind.push_back(work.next_token());
    if (behind.empty()) return;
    v1::PromptTokens& tokens = *result.add_prompt_tokens();
    tokens.set_lane(work.lane());
    tokens.set_start(work.start() + 1);
    for (uint32_t i = 0; i < behind.size(); ++i) {
      const uint64_t state = RowAt(lane, work.start() + i).state;
      tokens.add_log_probs(PromptLogProbOf(state, behind[i]));
      if (lane.sampling.prompt_top_log_probs() == 0) continue;
      AddTop(behind[i], lane.sampling.prompt_top_log_probs(), *tokens.add_top());
    }
  }

  void AppendBlocks(const v1::LaneWork& work, LaneState& lane) {
    const uint32_t positions = options_.block_positions;
    for (uint32_t id : work.new_blocks()) {
      Require(id < options_.blocks, "block ids are below the number of blocks");
      if (!error_.empty()) return;
      Require(std::count(lane.table.begin(), lane.table.end(), id) == 0,
              absl::StrCat("block ", id, " is once in a table"));
      const uint32_t first = static_cast<uint32_t>(lane.table.size()) * positions;
      Block& block = blocks_[id];
      if (first < work.start()) {
        Require(first + positions <= work.start(), "taken over blocks are whole");
        Require(block.rows.size() == positions, "taken over blocks are full");
        for (const Row& row : block.rows) {
          Require(row.written && row.by_prefill, "taken over blocks were written by prefill");
        }
        Require(first == lane.end, "taken over blocks follow what the lane has");
        lane.end = first + positions;
      } else {
        Require(block.lanes == 0, absl::StrCat("new block ", id, " is in no other table"));
        block.rows.assign(positions, Row());
      }
      ++block.lanes;
      lane.table.push_back(id);
    }
    const uint64_t end = uint64_t{work.start()} + work.count();
    Require(
        work.start() == lane.end,
        absl::StrCat("rows of lane ", work.lane(), " start at ", lane.end, ", not ", work.start()));
    Require(end <= options_.max_context, "rows are within the context");
    Require(lane.table.size() == (end + positions - 1) / positions,
            "the table has just the blocks the rows need");
    const int expected =
        work.decode() && work.tokens().empty() ? 0 : static_cast<int>(work.count());
    Require(work.tokens_size() == expected, "ids: one per row, none for generated tokens");
    Require(expected > 0 || lane.last_token.has_value(), "a generated token was sampled before");
    Require(expected == 0 || !lane.last_token.has_value(), "prompt rows come before sampling");
  }

  Row& RowAt(const LaneState& lane, uint32_t position) {
    return blocks_[lane.table[position / options_.block_positions]]
        .rows[position % options_.block_positions];
  }

  void WriteRow(const v1::LaneWork& work, uint32_t i, LaneState& lane) {
    const uint32_t position = work.start() + i;
    Require(blocks_[lane.table[position / options_.block_positions]].lanes == 1,
            "nobody writes to a shared block");
    Row& row = RowAt(lane, position);
    Require(!row.written, "a position is written once");
    const uint32_t token = work.tokens().empty() ? *lane.last_token : work.tokens(i);
    Require(token < options_.vocab_size, "ids are within the vocabulary");
    const uint64_t before = position == 0 ? 0 : RowAt(lane, position - 1).state;
    row = {.written = true, .by_prefill = !work.decode(), .state = NextState(before, token)};
    lane.end = position + 1;
  }

  void ReportRead(const v1::LaneWork& work,
                  bool report_blocks,
                  const LaneState& lane,
                  v1::StepResult& result) {
    v1::LaneRead& read = *result.add_reads();
    read.set_lane(work.lane());
    const bool dense = lane.sparse.mode() == v1::ATTENTION_MODE_UNSPECIFIED ||
                       lane.sparse.mode() == v1::ATTENTION_MODE_DENSE;
    read.set_mode(dense ? v1::ATTENTION_MODE_DENSE : lane.sparse.mode());
    const uint64_t tokens = dense ? lane.end : std::min(lane.end, lane.sparse.budget());
    const uint64_t positions = options_.block_positions;
    read.mutable_read()->set_tokens(tokens);
    read.mutable_read()->set_blocks((tokens + positions - 1) / positions);
    read.mutable_read()->set_bytes(tokens * 16);
    read.mutable_read()->set_dense_tokens(lane.end);
    read.mutable_read()->set_dense_blocks((lane.end + positions - 1) / positions);
    read.mutable_read()->set_dense_bytes(uint64_t{lane.end} * 16);
    // The last blocks are read, by all.
    if (!report_blocks) return;
    read.mutable_block_heat()->assign(lane.table.size() - read.read().blocks(), '\0');
    read.mutable_block_heat()->append(read.read().blocks(), '\xff');
  }

  const FakeOptions options_;
  std::vector<Block> blocks_;
  std::map<uint32_t, LaneState> lanes_;
  uint64_t step_ = 0;
  std::string error_;
};

// A rank with its own thread around a FakeModel.
class FakeWorker : public Worker {
 public:
  explicit FakeWorker(const FakeOptions& options = {})
      : options_(options), model_(options), thread_([this] { Loop(); }) {}

  // Runs what was submitted, then joins.
  ~FakeWorker() override {
    inbox_.Push({});
    thread_.join();
  }

  absl::StatusOr<v1::InitReply> Init(const v1::InitRequest& request) override {
    init_request = request;
    v1::InitReply reply;
    v1::ModelInfo& model = *reply.mutable_model();
    model.set_architecture("FakeForCausalLM");
    model.set_name("fake");
    model.set_vocab_size(options_.vocab_size);
    model.set_max_context(options_.max_context);
    model.set_layers(1);
    model.set_query_heads(1);
    model.set_kv_heads(1);
    model.set_head_dim(4);
    model.set_hidden_size(4);
    model.set_fingerprint("fake");
    reply.set_blocks(options_.blocks);
    reply.set_block_positions(options_.block_positions);
    reply.set_kv_bytes_per_token(16);
    reply.set_plans_in_flight(options_.plans_in_flight);
    return reply;
  }

  void Submit(std::shared_ptr<const v1::StepPlan> plan, Done done) override {
    inbox_.Push({std::move(plan), std::move(done)});
  }

  v1::InitRequest init_request;  // what Init was given; read after Init

 private:
  struct Job {
    std::shared_ptr<const v1::StepPlan> plan;  // null = leave
    Done done;
  };

  void Loop() {
    while (true) {
      for (Job& job : inbox_.PopAll(absl::InfiniteFuture())) {
        if (job.plan == nullptr) return;
        absl::SleepFor(options_.step_time);
        dead_ = dead_ || static_cast<int64_t>(job.plan->step()) == options_.fail_at_step;
        if (dead_) {
          job.done(absl::DataLossError("told to fail"));
        } else {
          job.done(model_.Run(*job.plan));
        }
      }
    }
  }

  const FakeOptions options_;
  FakeModel model_;
  bool dead_ = false;
  Queue<Job> inbox_;
  std::thread thread_;  // last
};

}  // namespace asynctls::testing
