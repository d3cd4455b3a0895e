// SPDX-License-Identifier: Apache-2.0
// The engine with its threads: replies, limits, cancels, deadlines, drain, failures, destruction.
// Free of OpenMP: runs under ThreadSanitizer.
#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/testing/fake_worker.h"

namespace asynctls {
namespace {

using ::testing::ElementsAreArray;
using testing::ExpectedReply;
using testing::FakeOptions;
using testing::FakeWorker;
using ::testing::HasSubstr;

// Collects the events of one request; Wait blocks until its finish.
class Client {
 public:
  void OnEvent(const TokenEvent& event) {
    std::lock_guard lock(mu_);
    if (event.token.has_value()) tokens_.push_back(*event.token);
    if (event.prompt_tokens_done.has_value()) progress_.push_back(*event.prompt_tokens_done);
    if (event.finished.has_value()) {
      EXPECT_FALSE(finished_.has_value()) << "finished twice";
      finished_ = event.finished;
    }
    cv_.notify_all();
  }
  TokenEvent::Finished Wait() {
    std::unique_lock lock(mu_);
    cv_.wait(lock, [this] { return finished_.has_value(); });
    return *finished_;
  }
  void WaitForTokens(size_t count) {
    std::unique_lock lock(mu_);
    cv_.wait(lock, [&] { return tokens_.size() >= count || finished_.has_value(); });
  }
  bool finished() {
    std::lock_guard lock(mu_);
    return finished_.has_value();
  }
  std::vector<uint32_t> tokens() {
    std::lock_guard lock(mu_);
    return tokens_;
  }
  std::vector<uint32_t> progress() {
    std::lock_guard lock(mu_);
    return progress_;
  }

 private:
  std::mutex mu_;
  std::condition_variable cv_;
  std::vector<uint32_t> tokens_, progress_;
  std::optional<TokenEvent::Finished> finished_;
};

std::vector<uint32_t> Prompt(uint32_t size, uint32_t seed) {
  std::vector<uint32_t> prompt(size);
  for (uint32_t i = 0; i < size; ++i) prompt[i] = (i * 7 + seed * 131) % 1000;
  return prompt;
}

// By how many plans may be in flight.
class EngineTest : public ::testing::TestWithParam<uint32_t> {
 protected:
  void Start(const FakeOptions& options, SchedulerConfig config = {}, int ranks = 1) {
    std::vector<std::unique_ptr<Worker>> workers;
    for (int i = 0; i < ranks; ++i) workers.push_back(std::make_unique<FakeWorker>(options));
    auto group = std::make_unique<WorkerGroup>(std::move(workers));
    const auto reply = group->Init({});
    ASSERT_TRUE(reply.ok()) << reply.status();
    config.blocks = reply->blocks();
    config.block_positions = reply->block_positions();
    config.vocab_size = reply->model().vocab_size();
    config.max_context = reply->model().max_context();
    config.fingerprint = reply->model().fingerprint();
    config.plans_in_flight = GetParam();
    engine_ = std::make_unique<Engine>(config, std::move(group), metrics_);
  }

  absl::Status Submit(const std::string& id,
                      std::vector<uint32_t> prompt,
                      uint32_t max_tokens,
                      Client& client,
                      absl::Time deadline = absl::InfiniteFuture()) {
    Request request;
    request.id = id;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.deadline = deadline;
    request.on_event = [&client](const TokenEvent& event) { client.OnEvent(event); };
    return engine_->Submit(std::move(request));
  }

  double Finished(Outcome outcome) { return metrics_.finished(outcome).Value(); }

  prometheus::Registry registry_;
  Metrics metrics_{registry_};
  std::unique_ptr<Engine> engine_;
};

TEST_P(EngineTest, RepliesWithTheModelsTokensAndUsage) {
  Start({});
  Client client;
  ASSERT_TRUE(Submit("a", Prompt(200, 1), 10, client).ok());
  const auto finished = client.Wait();
  EXPECT_EQ(finished.reason, FinishReason::kLength);
  EXPECT_TRUE(finished.status.ok());
  EXPECT_THAT(client.tokens(), ElementsAreArray(ExpectedReply(Prompt(200, 1), 10)));
  EXPECT_EQ(finished.usage.prompt_tokens, 200);
  EXPECT_EQ(finished.usage.completion_tokens, 10);
  EXPECT_EQ(finished.usage.decode_steps, 9);
  const auto snapshot = engine_->snapshot();  // the finish is told after the blocks are returned
  EXPECT_EQ(snapshot.running, 0);
  EXPECT_EQ(snapshot.waiting, 0);
  EXPECT_EQ(snapshot.blocks_used, 0);
  EXPECT_EQ(snapshot.blocks_cached, 3);
  EXPECT_EQ(snapshot.steps, 10);
  EXPECT_EQ(metrics_.step_gap.Collect().histogram.sample_count, 9) << "between steps, not before";
}

TEST_P(EngineTest, ManyThreadsManyRequestsEachGetsItsOwnReply) {
  FakeOptions options;
  options.blocks = 64;
  options.max_lanes = 8;
  SchedulerConfig config;
  config.max_lanes = 8;
  config.max_step_tokens = 256;
  Start(options, config, /*ranks=*/2);
  constexpr int kThreads = 4, kEach = 15;
  std::atomic<int> cancelled = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        Client client;
        const auto prompt = Prompt(20 + 37 * i, i % 5);
        const std::string id = absl::StrCat(t, "/", i);
        ASSERT_TRUE(Submit(id, prompt, 20, client).ok());
        if (i % 5 == 4) {
          engine_->Cancel(id, absl::CancelledError("enough"));
          engine_->Cancel(id, absl::CancelledError("twice"));
        }
        const auto finished = client.Wait();
        const auto expected = ExpectedReply(prompt, 20);
        const auto tokens = client.tokens();
        ASSERT_LE(tokens.size(), expected.size());
        EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
        if (finished.reason == FinishReason::kAborted) {
          ++cancelled;
          EXPECT_TRUE(absl::IsCancelled(finished.status));
        } else {
          EXPECT_EQ(finished.reason, FinishReason::kLength) << finished.status;
          EXPECT_EQ(tokens.size(), 20);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine_->Drain(absl::InfiniteDuration());
  // A sequence cancelled in a step gives its blocks back when the step is over.
  for (int i = 0; i < 10000 && engine_->snapshot().blocks_used > 0; ++i) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(engine_->snapshot().blocks_used, 0);
  EXPECT_EQ(Finished(Outcome::kAborted), cancelled);
  EXPECT_EQ(Finished(Outcome::kLength), kThreads * kEach - cancelled);
  EXPECT_EQ(metrics_.requests_started.Value(), kThreads * kEach);
  EXPECT_EQ(metrics_.requests_running.Value(), 0);
  EXPECT_EQ(metrics_.requests_waiting.Value(), 0);
}

TEST_P(EngineTest, RefusesAtTheDoor) {
  FakeOptions options;
  options.blocks = 4;
  options.step_time = absl::Milliseconds(20);
  SchedulerConfig config;
  config.max_lanes = 1;
  config.max_waiting_requests = 2;
  Start(options, config);
  Client unused, running, first, second;
  EXPECT_THAT(std::string(Submit("x", Prompt(250, 1), 100, unused).message()),
              HasSubstr("250 + 100 tokens need 6 KV blocks of 64, the server has 4"));
  ASSERT_TRUE(Submit("running", Prompt(10, 1), 200, running).ok());
  running.WaitForTokens(1);
  EXPECT_TRUE(absl::IsAlreadyExists(Submit("running", Prompt(10, 1), 2, unused)));
  ASSERT_TRUE(Submit("first", Prompt(10, 1), 2, first).ok());
  ASSERT_TRUE(Submit("second", Prompt(10, 1), 2, second).ok());
  const absl::Status full = Submit("third", Prompt(10, 1), 2, unused);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_EQ(Finished(Outcome::kRejected), 3);
  engine_->Cancel("running", absl::CancelledError("room"));
  EXPECT_EQ(running.Wait().reason, FinishReason::kAborted);
  EXPECT_EQ(first.Wait().reason, FinishReason::kLength);
  EXPECT_EQ(second.Wait().reason, FinishReason::kLength);
  EXPECT_FALSE(unused.finished());
  EXPECT_TRUE(Submit("running", Prompt(10, 1), 1, unused).ok()) << "the id is free again";
  EXPECT_EQ(unused.Wait().reason, FinishReason::kLength);
}

TEST_P(EngineTest, DeadlineEndsAWaitingRequestWhileAnotherRuns) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(5);
  SchedulerConfig config;
  config.max_lanes = 1;
  Start(options, config);
  Client running, waiting;
  ASSERT_TRUE(Submit("running", Prompt(10, 1), 50000, running).ok());
  ASSERT_TRUE(
      Submit("waiting", Prompt(10, 2), 10, waiting, absl::Now() + absl::Milliseconds(30)).ok());
  const auto finished = waiting.Wait();
  EXPECT_EQ(finished.reason, FinishReason::kAborted);
  EXPECT_TRUE(absl::IsDeadlineExceeded(finished.status));
  EXPECT_FALSE(running.finished());
  EXPECT_EQ(Finished(Outcome::kDeadline), 1);
  engine_.reset();
  EXPECT_TRUE(running.finished());
}

TEST_P(EngineTest, DrainLetsRunningOnesFinishAndRefusesNewOnes) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(2);
  Start(options);
  Client client, late;
  ASSERT_TRUE(Submit("a", Prompt(10, 1), 50, client).ok());
  std::thread drain([&] { engine_->Drain(absl::InfiniteDuration()); });
  absl::Status refused;
  int tried = 0;
  do {  // until the drain has begun
    refused = Submit(absl::StrCat("late", tried++), Prompt(10, 1), 1, late);
    if (refused.ok()) break;
  } while (!absl::IsUnavailable(refused));
  drain.join();
  EXPECT_EQ(client.Wait().reason, FinishReason::kLength);
  EXPECT_EQ(client.tokens().size(), 50);
  EXPECT_TRUE(absl::IsUnavailable(Submit("b", Prompt(10, 1), 1, late)));
}

TEST_P(EngineTest, DrainLimitCancelsTheRest) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(2);
  Start(options);
  Client client;
  ASSERT_TRUE(Submit("a", Prompt(10, 1), 50000, client).ok());
  engine_->Drain(absl::Milliseconds(20));
  ASSERT_TRUE(client.finished());
  EXPECT_TRUE(absl::IsUnavailable(client.Wait().status));
  EXPECT_EQ(engine_->snapshot().running, 0);
}

TEST_P(EngineTest, WorkerFailureEndsEverythingUnavailable) {
  FakeOptions options;
  options.fail_at_step = 5;
  SchedulerConfig config;
  config.max_lanes = 2;
  Start(options, config, /*ranks=*/2);
  Client clients[4], late;
  std::vector<Client*> accepted;
  for (int i = 0; i < 4; ++i) {  // two of them wait for a lane
    const absl::Status status = Submit(absl::StrCat(i), Prompt(10, i), 100, clients[i]);
    if (status.ok()) {
      accepted.push_back(&clients[i]);
    } else {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;  // the failure came first
    }
  }
  for (Client* client : accepted) EXPECT_EQ(client->Wait().reason, FinishReason::kFailed);
  ASSERT_FALSE(accepted.empty());
  const auto finished = clients[0].Wait();
  EXPECT_EQ(finished.reason, FinishReason::kFailed);
  EXPECT_TRUE(absl::IsUnavailable(finished.status));
  EXPECT_THAT(std::string(finished.status.message()), HasSubstr("told to fail"));
  EXPECT_FALSE(engine_->snapshot().healthy);
  EXPECT_TRUE(absl::IsUnavailable(Submit("late", Prompt(10, 1), 1, late)));
  engine_->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine_->snapshot().blocks_used, 0);
}

TEST_P(EngineTest, DestructionFinishesWhatIsLeft) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(5);
  SchedulerConfig config;
  config.max_lanes = 1;
  Start(options, config);
  Client running, waiting;
  ASSERT_TRUE(Submit("running", Prompt(10, 1), 50000, running).ok());
  ASSERT_TRUE(Submit("waiting", Prompt(10, 1), 50000, waiting).ok());
  engine_.reset();
  ASSERT_TRUE(running.finished());
  ASSERT_TRUE(waiting.finished());
  EXPECT_TRUE(absl::IsUnavailable(running.Wait().status));
  EXPECT_TRUE(absl::IsUnavailable(waiting.Wait().status));
}

TEST_P(EngineTest, PrefixOfAFinishedRequestIsFoundAgain) {
  Start({});
  Client first, second, salted;
  const auto prompt = Prompt(1000, 3);
  ASSERT_TRUE(Submit("a", prompt, 5, first).ok());
  EXPECT_EQ(first.Wait().usage.cached_tokens, 0);
  ASSERT_TRUE(Submit("b", prompt, 5, second).ok());
  EXPECT_EQ(second.Wait().usage.cached_tokens, 960);
  EXPECT_EQ(first.tokens(), second.tokens());
  Request request;
  request.id = "c";
  request.prompt = prompt;
  request.max_tokens = 5;
  request.cache_salt = "other tenant";
  request.on_event = [&salted](const TokenEvent& event) { salted.OnEvent(event); };
  ASSERT_TRUE(engine_->Submit(std::move(request)).ok());
  EXPECT_EQ(salted.Wait().usage.cached_tokens, 0);
  EXPECT_EQ(first.tokens(), salted.tokens());
}

TEST_P(EngineTest, AStopGivesBackWhatIsInFlightBehindIt) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(1);
  Start(options);
  const auto prompt = Prompt(130, 1);
  const auto reply = ExpectedReply(prompt, 100);
  std::vector<Client> clients(3);
  for (size_t i = 0; i < clients.size(); ++i) {
    Request request;
    request.id = absl::StrCat(i);
    request.prompt = prompt;
    request.max_tokens = 100;
    request.stop_tokens = {reply[20 + i]};
    request.on_event = [&client = clients[i]](const TokenEvent& event) { client.OnEvent(event); };
    ASSERT_TRUE(engine_->Submit(std::move(request)).ok());
  }
  for (size_t i = 0; i < clients.size(); ++i) {
    const TokenEvent::Finished finished = clients[i].Wait();
    EXPECT_EQ(finished.reason, FinishReason::kStop);
    EXPECT_EQ(finished.usage.completion_tokens, 20 + i);
    EXPECT_EQ(finished.usage.decode_steps, 20 + i);
    EXPECT_THAT(clients[i].tokens(), ElementsAreArray(reply.begin(), reply.begin() + 20 + i));
  }
  for (int i = 0; i < 10000 && engine_->snapshot().blocks_used > 0; ++i) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(engine_->snapshot().blocks_used, 0);
  EXPECT_EQ(engine_->snapshot().generation_tokens, 20 + 21 + 22);
}

// -------------------------------------------------------------------------------- n sequences --

std::vector<Request> Group(const std::string& id,
                           const std::vector<uint32_t>& prompt,
                           std::vector<Client>& clients) {
  std::vector<Request> requests(clients.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].id = absl::StrCat(id, "/", i);
    if (i > 0) requests[i].follows = requests[0].id;
    requests[i].prompt = prompt;
    requests[i].max_tokens = 8;
    requests[i].sampling.set_temperature(1);
    requests[i].sampling.set_index(static_cast<uint32_t>(i));
    requests[i].on_event = [client = &clients[i]](const TokenEvent& event) {
      client->OnEvent(event);
    };
  }
  return requests;
}

TEST_P(EngineTest, SequencesOfOneRequestReadItsPromptOnce) {
  SchedulerConfig config;
  config.max_step_tokens = 256;
  Start({}, config);
  std::vector<Client> clients(4);
  const auto prompt = Prompt(3000, 1);
  std::vector<Request> requests = Group("x", prompt, clients);
  std::vector<v1::SamplingParams> sampling;
  for (const Request& request : requests) sampling.push_back(request.sampling);
  ASSERT_TRUE(engine_->Submit(std::move(requests)).ok());
  for (size_t i = 0; i < clients.size(); ++i) {
    EXPECT_EQ(clients[i].Wait().reason, FinishReason::kLength);
    EXPECT_THAT(clients[i].tokens(), ElementsAreArray(ExpectedReply(prompt, 8, 1000, sampling[i])));
  }
  const Engine::Snapshot snapshot = engine_->snapshot();
  EXPECT_EQ(snapshot.prompt_tokens_computed, 3000 + 3 * (3000 % 64));
  EXPECT_EQ(snapshot.generation_tokens, 4 * 8);
  EXPECT_EQ(snapshot.prefix_query_tokens, 4 * 3000);
  EXPECT_EQ(snapshot.prefix_hit_tokens, 3 * (3000 - 3000 % 64));
  EXPECT_EQ(metrics_.requests_started.Value(), 4);
  EXPECT_EQ(metrics_.request_params_n.Collect().histogram.sample_sum, 4);
  EXPECT_EQ(metrics_.request_params_max_tokens.Collect().histogram.sample_sum, 8);
}

TEST_P(EngineTest, AllSequencesAreAcceptedOrNone) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(5);
  SchedulerConfig config;
  config.max_lanes = 1;
  config.max_waiting_requests = 4;
  config.max_waiting_prompt_tokens = 100;
  Start(options, config);
  Client running;
  ASSERT_TRUE(Submit("x/2", Prompt(10, 1), 50000, running).ok());
  running.WaitForTokens(1);
  std::vector<Client> clients(4), many(5);
  EXPECT_TRUE(absl::IsAlreadyExists(engine_->Submit(Group("x", Prompt(10, 2), clients))));
  EXPECT_EQ(engine_->snapshot().waiting, 0);
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Submit(Group("y", Prompt(10, 2), many))));
  const absl::Status long_prompts = engine_->Submit(Group("y", Prompt(26, 2), clients));
  EXPECT_TRUE(absl::IsInvalidArgument(long_prompts));
  EXPECT_THAT(
      std::string(long_prompts.message()),
      HasSubstr("n: 4 sequences with 104 prompt tokens in all, the queue holds 4 with 100"));
  std::vector<Client> waiting(2);
  ASSERT_TRUE(engine_->Submit(Group("z", Prompt(10, 3), waiting)).ok());
  EXPECT_EQ(engine_->snapshot().waiting, 2);
  EXPECT_EQ(engine_->snapshot().waiting_prompt_tokens, 20);
  std::vector<Client> three(3);
  EXPECT_TRUE(absl::IsResourceExhausted(engine_->Submit(Group("y", Prompt(10, 2), three))));
  EXPECT_EQ(metrics_.requests_rejected[static_cast<size_t>(Rejection::kDuplicate)]->Value(), 1);
  EXPECT_EQ(metrics_.requests_rejected[static_cast<size_t>(Rejection::kInvalid)]->Value(), 2);
  EXPECT_EQ(metrics_.requests_rejected[static_cast<size_t>(Rejection::kOverloaded)]->Value(), 1);
  engine_->Cancel("x/2", absl::CancelledError("room"));
  for (Client& client : waiting) EXPECT_EQ(client.Wait().reason, FinishReason::kLength);
  ASSERT_TRUE(engine_->Submit(Group("x", Prompt(10, 2), clients)).ok()) << "the ids are free";
  for (Client& client : clients) EXPECT_EQ(client.Wait().reason, FinishReason::kLength);
}

TEST_P(EngineTest, DrainWaitsForFollowersToo) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(1);
  SchedulerConfig config;
  config.max_step_tokens = 64;
  Start(options, config);
  std::vector<Client> clients(3);
  ASSERT_TRUE(engine_->Submit(Group("x", Prompt(500, 1), clients)).ok());
  engine_->Drain(absl::InfiniteDuration());
  for (Client& client : clients) {
    ASSERT_TRUE(client.finished());
    EXPECT_EQ(client.Wait().reason, FinishReason::kLength);
  }
}

// ------------------------------------------------------------------------------------- watching --

TEST_P(EngineTest, WhoWatchesSeesLiveRequestsAndTheirBlocks) {
  FakeOptions options;
  options.step_time = absl::Milliseconds(1);
  SchedulerConfig config;
  config.max_lanes = 1;
  Start(options, config);
  EXPECT_EQ(engine_->Requests()->as_of, absl::InfinitePast());
  EXPECT_TRUE(engine_->Requests()->requests.empty());
  Client running, waiting;
  ASSERT_TRUE(Submit("running", Prompt(100, 1), 50000, running).ok());
  ASSERT_TRUE(Submit("waiting", Prompt(10, 2), 5, waiting).ok());
  running.WaitForTokens(1);
  engine_->Watch(absl::Hours(1));
  std::shared_ptr<const RequestTable> table;
  do {  // until a copy after a step that was asked for block heat
    running.WaitForTokens(running.tokens().size() + 1);
    table = engine_->Requests();
  } while (table->requests.empty() || table->requests[0].block_heat.empty());
  ASSERT_EQ(table->requests.size(), 2);
  EXPECT_EQ(table->requests[0].id, "running");
  EXPECT_EQ(table->requests[0].phase, RequestPhase::kDecode);
  EXPECT_EQ(table->requests[1].id, "waiting");
  EXPECT_EQ(table->requests[1].phase, RequestPhase::kWaiting);
  const Engine::Snapshot snapshot = engine_->snapshot();
  EXPECT_EQ(snapshot.max_running, 1);
  EXPECT_GT(snapshot.blocks_reserved, 700);
  EXPECT_GT(snapshot.step_phase_seconds[kStepPhases.size() - 1], 0);
  engine_->Cancel("running", absl::CancelledError("enough"));
  waiting.Wait();
}

TEST_P(EngineTest, AnIdleEngineCopiesForWhoWatches) {
  Start({});
  do {  // wakes it each time; it copies when it sees the first
    engine_->Watch(absl::Seconds(10));
  } while (engine_->Requests()->as_of == absl::InfinitePast());
  EXPECT_TRUE(engine_->Requests()->requests.empty());
}

INSTANTIATE_TEST_SUITE_P(PlansInFlight, EngineTest, ::testing::Values(1u, 2u));

}  // namespace
}  // namespace asynctls
