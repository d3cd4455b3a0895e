// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/testing/infer_request.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class KserveServiceTest : public ::testing::Test {
 protected:
  explicit KserveServiceTest(const TestServer::Options& options = TestServer::Defaults())
      : server_(options), stub_(inference::GRPCInferenceService::NewStub(server_.channel())) {}

  grpc::Status Infer(const inference::ModelInferRequest& request,
                     inference::ModelInferResponse& response) {
    grpc::ClientContext context;
    return stub_->ModelInfer(&context, request, &response);
  }
  std::string Expected(const std::string& prompt, uint32_t tokens) {
    const auto ids = server_.tokenizer().Encode(prompt, true);
    return *server_.tokenizer().Decode(ExpectedReply(*ids, tokens, kDemoVocab), true);
  }

  TestServer server_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(KserveServiceTest, InferAnswersWithTheWholeText) {
  inference::ModelInferRequest request = InferTextRequest("The wise lamp", 20);
  request.set_id("41");
  inference::ModelInferResponse response;
  const grpc::Status status = Infer(request, response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.id(), "41");
  EXPECT_EQ(response.model_name(), "fake");
  EXPECT_EQ(response.model_version(), "1");
  EXPECT_TRUE(IsFinal(response));
  EXPECT_THAT(OutputStrings(response, "text_output"), ElementsAre(Expected("The wise lamp", 20)));
  EXPECT_EQ(server_.metrics().requests_by(Protocol::kKserve).Value(), 1);
}

TEST_F(KserveServiceTest, NSequencesAreNElements) {
  inference::ModelInferRequest request = InferTextRequest("The wise lamp", 5);
  (*request.mutable_parameters())["n"].set_int64_param(3);
  (*request.mutable_parameters())["return_finish_reason"].set_bool_param(true);
  inference::ModelInferResponse response;
  ASSERT_TRUE(Infer(request, response).ok());
  EXPECT_EQ(OutputStrings(response, "text_output").size(), 3u);
  EXPECT_THAT(OutputStrings(response, "finish_reason"), ElementsAre("length", "length", "length"));
}

struct Malformed {
  grpc::StatusCode code;
  std::string message;
  std::function<void(inference::ModelInferRequest&)> spoil;
};

// What only the front end can tell; the rest is in kserve_request_test.
TEST_F(KserveServiceTest, MalformedRequestsAreRefused) {
  const auto invalid = grpc::StatusCode::INVALID_ARGUMENT;
  const auto parameter = [](inference::ModelInferRequest& r,
                            const std::string& name) -> inference::InferParameter& {
    return (*r.mutable_parameters())[name];
  };
  const std::vector<Malformed> cases = {
      {grpc::StatusCode::NOT_FOUND, "model 'gpt'", [](auto& r) { r.set_model_name("gpt"); }},
      {grpc::StatusCode::NOT_FOUND, "'2'", [](auto& r) { r.set_model_version("2"); }},
      {invalid, "text_input is missing", [](auto& r) { r.clear_inputs(); }},
      {invalid, "ModelStreamInfer", [&](auto& r) { parameter(r, "stream").set_bool_param(true); }},
      {invalid,
       "temperature nan is outside",
       [&](auto& r) { parameter(r, "temperature").set_double_param(NAN); }},
      {invalid,
       "top_p -0.5 is outside",
       [&](auto& r) { parameter(r, "top_p").set_double_param(-0.5); }},
      {invalid,
       "max_tokens must be at least 1",
       [&](auto& r) { parameter(r, "max_tokens").set_int64_param(0); }},
      {invalid,
       "max_tokens 4294967295",
       [&](auto& r) { parameter(r, "max_tokens").set_uint64_param(UINT32_MAX); }},
      {invalid,
       "stop holds an empty string",
       [&](auto& r) { parameter(r, "stop").set_string_param(""); }},
      {invalid,
       "stop_token_ids[0] is 5000",
       [&](auto& r) { parameter(r, "stop_token_ids").set_int64_param(5000); }},
      {invalid,
       "the text_input has",
       [](auto& r) {
         r.mutable_inputs(0)->mutable_contents()->set_bytes_contents(0, std::string(200000, '@'));
       }},
      {grpc::StatusCode::UNIMPLEMENTED,
       "best_of 4",
       [&](auto& r) { parameter(r, "best_of").set_int64_param(4); }},
      {grpc::StatusCode::DEADLINE_EXCEEDED,
       "",
       [&](auto& r) {
         parameter(r, "max_tokens").set_int64_param(60000);
         parameter(r, "timeout").set_int64_param(1);
       }},
  };
  for (const Malformed& malformed : cases) {
    inference::ModelInferRequest request = InferTextRequest("once", 4);
    malformed.spoil(request);
    inference::ModelInferResponse response;
    const grpc::Status status = Infer(request, response);
    EXPECT_EQ(status.error_code(), malformed.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(malformed.message));
  }
  EXPECT_EQ(server_.metrics().requests_by(Protocol::kKserve).Value(), cases.size());
  inference::ModelInferResponse response;
  EXPECT_TRUE(Infer(InferTextRequest("once", 4), response).ok());
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(KserveServiceTest, DeadlinesAndCancelsFreeTheirBlocks) {
  grpc::ClientContext deadline;
  deadline.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(30));
  inference::ModelInferResponse response;
  EXPECT_EQ(stub_->ModelInfer(&deadline, InferTextRequest("once", 60000), &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server_.WaitIdle());
  grpc::ClientContext cancelled;
  std::thread canceller([&] {
    server_.WaitFor([](const Engine::Snapshot& s) { return s.running > 0; });
    cancelled.TryCancel();
  });
  EXPECT_EQ(stub_->ModelInfer(&cancelled, InferTextRequest("once", 60000), &response).error_code(),
            grpc::StatusCode::CANCELLED);
  canceller.join();
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(KserveServiceTest, TellsServerAndModel) {
  grpc::ClientContext c[10];
  inference::ServerLiveResponse live;
  ASSERT_TRUE(stub_->ServerLive(&c[0], {}, &live).ok());
  EXPECT_TRUE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_TRUE(stub_->ServerReady(&c[1], {}, &ready).ok());
  EXPECT_TRUE(ready.ready());
  inference::ServerMetadataResponse server;
  ASSERT_TRUE(stub_->ServerMetadata(&c[2], {}, &server).ok());
  EXPECT_EQ(server.name(), "asynctls");
  EXPECT_EQ(server.version(), ServerVersion());

  inference::ModelReadyRequest which;
  which.set_name("fake");
  inference::ModelReadyResponse model_ready;
  ASSERT_TRUE(stub_->ModelReady(&c[3], which, &model_ready).ok());
  EXPECT_TRUE(model_ready.ready());
  which.set_version("2");
  ASSERT_TRUE(stub_->ModelReady(&c[4], which, &model_ready).ok());
  EXPECT_FALSE(model_ready.ready());

  inference::ModelMetadataRequest model;
  model.set_name("fake");
  inference::ModelMetadataResponse metadata;
  ASSERT_TRUE(stub_->ModelMetadata(&c[5], model, &metadata).ok());
  EXPECT_EQ(metadata.inputs(0).name(), "text_input");
  EXPECT_EQ(metadata.outputs(0).name(), "text_output");
  EXPECT_EQ(metadata.outputs(0).datatype(), "BYTES");
  model.set_name("other");
  EXPECT_EQ(stub_->ModelMetadata(&c[6], model, &metadata).error_code(),
            grpc::StatusCode::NOT_FOUND);

  inference::ModelConfigRequest which_config;
  which_config.set_name("fake");
  inference::ModelConfigResponse config;
  ASSERT_TRUE(stub_->ModelConfig(&c[7], which_config, &config).ok());
  EXPECT_TRUE(config.config().model_transaction_policy().decoupled());
  EXPECT_EQ(config.config().input(0).data_type(), inference::TYPE_STRING);
  which_config.set_version("7");
  EXPECT_EQ(stub_->ModelConfig(&c[8], which_config, &config).error_code(),
            grpc::StatusCode::NOT_FOUND);

  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(stub_->RepositoryIndex(&c[9], {}, &index).ok());
  ASSERT_EQ(index.models_size(), 1);
  EXPECT_EQ(index.models(0).name(), "fake");
  EXPECT_EQ(index.models(0).state(), "READY");
}

class KserveLoadingTest : public KserveServiceTest {
 protected:
  static TestServer::Options Loading() {
    TestServer::Options options = TestServer::Defaults();
    options.open = false;
    return options;
  }
  KserveLoadingTest() : KserveServiceTest(Loading()) {}
};

TEST_F(KserveLoadingTest, ALoadingServerIsLiveAndNotReady) {
  grpc::ClientContext c[4];
  inference::ServerLiveResponse live;
  ASSERT_TRUE(stub_->ServerLive(&c[0], {}, &live).ok());
  EXPECT_TRUE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_TRUE(stub_->ServerReady(&c[1], {}, &ready).ok());
  EXPECT_FALSE(ready.ready());
  inference::ModelReadyRequest which;
  which.set_name("fake");
  inference::ModelReadyResponse model_ready;
  ASSERT_TRUE(stub_->ModelReady(&c[2], which, &model_ready).ok());
  EXPECT_FALSE(model_ready.ready());
  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(stub_->RepositoryIndex(&c[3], {}, &index).ok());
  EXPECT_EQ(index.models_size(), 0);
  inference::ModelInferResponse response;
  EXPECT_EQ(Infer(InferTextRequest("once", 4), response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace asynctls::testing
