// SPDX-License-Identifier: Apache-2.0
// Ten thousand malformed requests over each gRPC protocol: the server lives, no block leaks, and
// the well-formed requests among them are answered as ever.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>

#include "grpcpp/generic/generic_stub.h"
#include "inference/grpc_service.pb.h"
#include "tests/testing/malformed.h"
#include "tests/testing/serving_fixture.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"

namespace asynctls::testing {
namespace {

constexpr int kRequests = 10000;
constexpr int kInFlight = 32;
constexpr int kNeighbourEvery = 250;

// Short replies, so that a request that happens to be valid takes no time.
TestServer::Options ShortReplies() {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_max_context(192);
  options.fake.max_context = 192;
  return options;
}

// Sends `requests` to a method that takes one message, some at a time; returns how often each
// status came. Answers beyond the first message are gRPC's to refuse.
std::map<grpc::StatusCode, int> Flood(TestServer& server,
                                      const std::string& method,
                                      const std::function<std::string(int)>& request,
                                      const std::function<void()>& neighbour) {
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
    grpc::ByteBuffer response;
    grpc::Status status;
  };
  grpc::GenericStub stub(server.channel());
  grpc::CompletionQueue queue;
  std::map<grpc::StatusCode, int> statuses;
  int running = 0;
  const auto take = [&] {
    void* tag;
    bool ok;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    const std::unique_ptr<Call> call(static_cast<Call*>(tag));
    ++statuses[call->status.error_code()];
    --running;
  };
  for (int i = 0; i < kRequests; ++i) {
    auto call = std::make_unique<Call>();
    grpc::Slice slice(request(i));
    call->reader =
        stub.PrepareUnaryCall(&call->context, method, grpc::ByteBuffer(&slice, 1), &queue);
    call->reader->StartCall();
    Call* const raw = call.release();
    raw->reader->Finish(&raw->response, &raw->status, raw);
    if (++running >= kInFlight) take();
    if (i % kNeighbourEvery == 0) neighbour();
  }
  while (running > 0) take();
  return statuses;
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
