// SPDX-License-Identifier: Apache-2.0
// Fan-out of plans, fan-in of acknowledgements.
#include "engine/worker/worker_group.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "proto/kv_read.h"

namespace asynctls {
namespace {

absl::Status OfRank(int rank, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("rank ", rank, ": ", status.message()));
}

// Adds the counters of one rank to rank 0's result. Every rank reports the same lanes in the same
// order, because it ran the same plan.
absl::Status Merge(v1::StepResult& result, const v1::StepResult& other) {
  if (other.step() != result.step() || other.reads_size() != result.reads_size()) {
    return absl::InternalError(absl::StrCat("answered step ",
                                            other.step(),
                                            " with ",
                                            other.reads_size(),
                                            " reads, rank 0 step ",
                                            result.step(),
                                            " with ",
                                            result.reads_size()));
  }
  for (int i = 0; i < result.reads_size(); ++i) {
    if (other.reads(i).lane() != result.reads(i).lane()) {
      return absl::InternalError("reads of other lanes than rank 0's");
    }
    AddKvRead(*result.mutable_reads(i)->mutable_read(), other.reads(i).read());
  }
  result.set_nan_heads(result.nan_heads() + other.nan_heads());
  return absl::OkStatus();
}

// The mean over the ranks, which hold equally many KV heads; at least 1 where one of them read.
absl::Status AverageHeat(std::vector<v1::StepResult>& results) {
  const unsigned ranks = static_cast<unsigned>(results.size());
  for (int i = 0; i < results[0].reads_size(); ++i) {
    std::string& heat = *results[0].mutable_reads(i)->mutable_block_heat();
    std::vector<unsigned> sums(heat.size());
    for (const v1::StepResult& result : results) {
      const std::string& part = result.reads(i).block_heat();
      if (part.size() != sums.size()) return absl::InternalError("block heat of another length");
      for (size_t b = 0; b < sums.size(); ++b) sums[b] += static_cast<unsigned char>(part[b]);
    }
    for (size_t b = 0; b < sums.size(); ++b) {
      const unsigned mean = (sums[b] + ranks / 2) / ranks;
      heat[b] = static_cast<char>(sums[b] > 0 ? std::max(mean, 1u) : 0);
    }
  }
  return absl::OkStatus();
}

// Adds one more rank's reply to rank 0's.
absl::Status Merge(v1::InitReply& reply, const v1::InitReply& other, int rank) {
  if (other.model().SerializeAsString() != reply.model().SerializeAsString() ||
      other.block_positions() != reply.block_positions()) {
    return absl::InternalError(absl::StrCat("rank ",
                                            rank,
                                            " loaded another model than rank 0: ",
                                            other.ShortDebugString(),
                                            " against ",
                                            reply.ShortDebugString()));
  }
  reply.set_blocks(std::min(reply.blocks(), other.blocks()));
  reply.set_plans_in_flight(std::min(reply.plans_in_flight(), other.plans_in_flight()));
  reply.set_kv_bytes_per_token(reply.kv_bytes_per_token() + other.kv_bytes_per_token());
  reply.set_code_bytes_per_token(reply.code_bytes_per_token() + other.code_bytes_per_token());
  reply.set_device(absl::StrCat(reply.device(), "; ", other.device()));
  for (v1::InitReply::Memory memory : other.memory()) {
    memory.set_what(absl::StrCat("rank ", rank, " ", memory.what()));
    *reply.add_memory() = std::move(memory);
  }
  return absl::OkStatus();
}

}  // namespace

struct WorkerGroup::State {
  std::mutex mu;
  absl::Status failure;  // guarded by mu; the first one stays
};

// One step on its way through the ranks.
struct WorkerGroup::Step {
  std::mutex mu;
  Worker::Done done;  // guarded by mu, as all below; null once called
  std::vector<v1::StepResult> results;
  size_t acknowledged = 0;

  // The outcome, once there is one: the first failure, or all results merged.
  std::optional<absl::StatusOr<v1::StepResult>> Acknowledge(int rank,
                                                            uint64_t step,
                                                            absl::StatusOr<v1::StepResult> result) {
    if (!result.ok()) return OfRank(rank, result.status());
    if (result->step() != step) {
      return OfRank(rank,
                    absl::InternalError(
                        absl::StrCat("answered step ", result->step(), " instead of ", step)));
    }
    results[rank] = *std::move(result);
    if (++acknowledged < results.size()) return std::nullopt;
    for (size_t other = 1; other < results.size(); ++other) {
      const absl::Status merged = Merge(results[0], results[other]);
      if (!merged.ok()) return OfRank(static_cast<int>(other), merged);
    }
    const absl::Status averaged = AverageHeat(results);
    if (!averaged.ok()) return averaged;
    return std::move(results[0]);
  }
};

WorkerGroup::WorkerGroup(std::vector<std::unique_ptr<Worker>> workers)
    : state_(std::make_shared<State>()), workers_(std::move(workers)) {
  ASYNCTLS_CHECK(!workers_.empty());
}

WorkerGroup::~WorkerGroup() = default;

absl::StatusOr<v1::InitReply> WorkerGroup::Init(v1::InitRequest request) {
  const int count = ranks();
  request.set_ranks(count);
  std::vector<v1::InitReply> replies(count);
  std::mutex mu;
  absl::Status failure;  // the first in time: later ones are often only its echo in a collective
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      v1::InitRequest own = request;
      own.set_rank(rank);
      auto reply = workers_[rank]->Init(own);
      std::lock_guard lock(mu);
      if (reply.ok()) {
        replies[rank] = *std::move(reply);
      } else if (failure.ok()) {
        failure = count == 1 ? reply.status() : OfRank(rank, reply.status());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (!failure.ok()) return failure;
  v1::InitReply reply = replies[0];
  for (int rank = 1; rank < count; ++rank) {
    const absl::Status merged = Merge(reply, replies[rank], rank);
    if (!merged.ok()) return merged;
  }
  return reply;
}

void WorkerGroup::Submit(std::shared_ptr<const v1::StepPlan> plan, Worker::Done done) {
  {
    std::unique_lock lock(state_->mu);
    if (!state_->failure.ok()) {
      const absl::Status failure = state_->failure;
      lock.unlock();
      done(failure);
      return;
    }
  }
  auto step = std::make_shared<Step>();
  step->done = std::move(done);
  step->results.resize(workers_.size());
  const uint64_t number = plan->step();
  for (int rank = 0; rank < ranks(); ++rank) {
    workers_[rank]->Submit(
        plan, [state = state_, step, rank, number](absl::StatusOr<v1::StepResult> result) {
          std::unique_lock lock(step->mu);
          if (step->done == nullptr) return;  // another rank has failed it already
          auto outcome = step->Acknowledge(rank, number, std::move(result));
          if (!outcome.has_value()) return;
          Worker::Done call = std::exchange(step->done, nullptr);
          lock.unlock();
          if (!outcome->ok()) {
            *outcome = absl::UnavailableError(outcome->status().message());
            std::lock_guard guard(state->mu);
            if (state->failure.ok()) state->failure = outcome->status();
          }
          call(*std::move(outcome));
        });
  }
}

}  // namespace asynctls
