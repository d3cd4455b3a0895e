// SPDX-License-Identifier: Apache-2.0
// Ten thousand malformed requests over each gRPC protocol: the server lives, no block leaks, and
// the well-formed requests among them are answered as ever.
#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>

#include "tests/testing/flood.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

constexpr int kRequests = 10000;
constexpr int kInFlight = 32;
constexpr int kNeighbourEvery = 10;

// Short replies, so that a request that happens to be valid takes no time.
TestServer::Options ShortReplies() {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_max_context(192);
  options.fake.max_context = 192;
  return options;
}

// Calls in flight, and how often each status came.
class Tally {
 public:
  void Begin() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return running_ < kInFlight; });
    ++running_;
  }
  void End(grpc::StatusCode code) {
    std::lock_guard lock(mu_);
    ++statuses_[code];
    --running_;
    changed_.notify_all();
  }
  std::map<grpc::StatusCode, int> Wait() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return running_ == 0; });
    return statuses_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  int running_ = 0;
  std::map<grpc::StatusCode, int> statuses_;
};

// Sends kRequests messages, some at a time; returns how often each status came.
std::map<grpc::StatusCode, int> Flood(TestServer& server,
                                      const std::string& method,
                                      const std::function<std::string(int)>& request,
                                      const std::function<void()>& neighbour) {
  grpc::GenericStub stub(server.channel());
  Tally tally;
  for (int i = 0; i < kRequests; ++i) {
    tally.Begin();
    FloodCall::Start(stub,
                     method,
                     request(i),
                     absl::InfiniteDuration(),
                     /*answers=*/0,
                     [&tally](grpc::StatusCode code) { tally.End(code); });
    if (i % kNeighbourEvery == 0) neighbour();
  }
  return tally.Wait();
}

template <class Request>
std::function<std::string(int)> Requests(const Request& valid, Rng& rng) {
  return [valid, &rng](int i) { return Spoiled(valid, i, rng); };
}

void ExpectUnharmed(TestServer& server, const std::map<grpc::StatusCode, int>& statuses) {
  EXPECT_TRUE(server.WaitIdle());
  EXPECT_EQ(server.engine().snapshot().blocks_used, 0);
  int total = 0;
  for (const auto& [code, count] : statuses) total += count;
  EXPECT_EQ(total, kRequests);
  EXPECT_GT(statuses.at(grpc::StatusCode::INVALID_ARGUMENT), kRequests / 10);
  EXPECT_EQ(statuses.count(grpc::StatusCode::UNAVAILABLE), 0u);
  EXPECT_TRUE(server.server().UpdateHealth());
}

// A well-formed request beside the flood.
std::function<void()> Neighbour(TestServer& server) {
  return [&server] {
    v1::GenerateRequest request = IdsRequest({7, 8, 9}, 4);
    request.set_priority(100);  // the flood may fill the queue
    const Outcome out = server.Generate(request);
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    EXPECT_EQ(out.ids, ExpectedReply({7, 8, 9}, 4, kDemoVocab));
  };
}

TEST(MalformedRequestsTest, Native) {
  TestServer server(ShortReplies());
  Rng rng(1);
  ExpectUnharmed(server,
                 Flood(server, kNativeMethod, Requests(ValidNative(), rng), Neighbour(server)));
}

TEST(MalformedRequestsTest, Vllm) {
  TestServer server(ShortReplies());
  Rng rng(2);
  ExpectUnharmed(server, Flood(server, kVllmMethod, Requests(ValidVllm(), rng), Neighbour(server)));
}

TEST(MalformedRequestsTest, Kserve) {
  TestServer server(ShortReplies());
  Rng rng(3);
  ExpectUnharmed(server,
                 Flood(server, kKserveMethod, Requests(ValidKserve(), rng), Neighbour(server)));
}

}  // namespace
}  // namespace asynctls::testing
