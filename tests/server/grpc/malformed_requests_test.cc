// SPDX-License-Identifier: Apache-2.0
// Ten thousand malformed requests over each gRPC protocol: the server lives, no block leaks, and
// the well-formed requests among them are answered as ever.
#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>

#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/client_callback.h"
#include "inference/grpc_service.pb.h"
#include "tests/testing/malformed.h"
#include "tests/testing/serving_fixture.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"

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

// A call that sends one message and reads whatever comes.
class Call final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Call(grpc::GenericStub& stub, const std::string& method, const std::string& bytes, Tally& tally)
      : tally_(tally) {
    grpc::Slice slice(bytes);
    request_ = grpc::ByteBuffer(&slice, 1);
    stub.PrepareBidiStreamingCall(&context_, method, grpc::StubOptions(), this);
    StartWriteLast(&request_, grpc::WriteOptions());
    StartRead(&response_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (ok) StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    tally_.End(status.error_code());
    delete this;
  }

 private:
  Tally& tally_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, response_;
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
    new Call(stub, method, request(i), tally);  // deletes itself
    if (i % kNeighbourEvery == 0) neighbour();
  }
  return tally.Wait();
}

// Every second one has broken bytes, the others random values.
template <class Request>
std::function<std::string(int)> Requests(const Request& valid, Rng& rng) {
  const std::string bytes = valid.SerializeAsString();
  return [bytes, valid, &rng](int i) {
    if (i % 2 == 0) return Mutate(bytes, rng);
    Request request = valid;
    FillRandom(request, rng);
    return request.SerializeAsString();
  };
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
  v1::GenerateRequest valid = IdsRequest({1, 2, 3}, 3);
  valid.mutable_stopping()->add_stop("end");
  valid.mutable_sampling()->set_top_p(0.9f);
  ExpectUnharmed(server,
                 Flood(server,
                       "/asynctls.v1.GenerationService/Generate",
                       Requests(valid, rng),
                       Neighbour(server)));
}

TEST(MalformedRequestsTest, Vllm) {
  TestServer server(ShortReplies());
  Rng rng(2);
  vllm::grpc::engine::GenerateRequest valid;
  for (uint32_t id : {1, 2, 3}) valid.mutable_tokenized()->add_input_ids(id);
  valid.mutable_sampling_params()->set_max_tokens(3);
  valid.mutable_sampling_params()->set_temperature(0);
  valid.mutable_sampling_params()->add_stop("end");
  ExpectUnharmed(server,
                 Flood(server,
                       "/vllm.grpc.engine.VllmEngine/Generate",
                       Requests(valid, rng),
                       Neighbour(server)));
}

inference::ModelInferRequest ValidInfer() {
  inference::ModelInferRequest valid;
  valid.set_model_name("fake");
  valid.set_id("7");
  auto& text = *valid.add_inputs();
  text.set_name("text_input");
  text.set_datatype("BYTES");
  text.add_shape(1);
  text.mutable_contents()->add_bytes_contents("once");
  auto& stop = *valid.add_inputs();
  stop.set_name("stop");
  stop.set_datatype("BYTES");
  stop.add_shape(1);
  stop.mutable_contents()->add_bytes_contents("end");
  (*valid.mutable_parameters())["max_tokens"].set_int64_param(3);
  (*valid.mutable_parameters())["sampling_parameters"].set_string_param("{\"top_p\": 0.9}");
  return valid;
}

TEST(MalformedRequestsTest, Kserve) {
  TestServer server(ShortReplies());
  Rng rng(3);
  ExpectUnharmed(server,
                 Flood(server,
                       "/inference.GRPCInferenceService/ModelInfer",
                       Requests(ValidInfer(), rng),
                       Neighbour(server)));
}

}  // namespace
}  // namespace asynctls::testing
