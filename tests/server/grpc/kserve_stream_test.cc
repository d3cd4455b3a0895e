// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "inference/grpc_service.grpc.pb.h"
#include "tests/testing/infer_request.h"
#include "tests/testing/malformed.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

using Stream =
    grpc::ClientReaderWriter<inference::ModelInferRequest, inference::ModelStreamInferResponse>;

class InferStreamTest : public ::testing::Test {
 protected:
  InferStreamTest() : stub_(inference::GRPCInferenceService::NewStub(server_.channel())) {}

  // Text and errors of each id, until the server ends the call.
  struct Answers {
    std::map<std::string, std::string> text, error;
    std::map<std::string, int> finals;
    int messages = 0;
    grpc::Status status;
  };
  static Answers Drain(Stream& stream) {
    Answers out;
    for (inference::ModelStreamInferResponse message; stream.Read(&message); ++out.messages) {
      const inference::ModelInferResponse& response = message.infer_response();
      if (!message.error_message().empty()) out.error[response.id()] = message.error_message();
      for (const std::string& text : OutputStrings(response, "text_output")) {
        out.text[response.id()] += text;
      }
      out.finals[response.id()] += IsFinal(response);
    }
    out.status = stream.Finish();
    return out;
  }

  static inference::ModelInferRequest Request(const std::string& id,
                                              const std::string& text,
                                              int64_t tokens,
                                              bool stream = true) {
    inference::ModelInferRequest request = InferTextRequest(text, tokens);
    request.set_id(id);
    (*request.mutable_parameters())["stream"].set_bool_param(stream);
    return request;
  }
  std::string Expected(const std::string& prompt, uint32_t tokens) {
    const auto ids = server_.tokenizer().Encode(prompt, true);
    return *server_.tokenizer().Decode(ExpectedReply(*ids, tokens, kDemoVocab), true);
  }

  TestServer server_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(InferStreamTest, RequestsRunBesideEachOtherAndKeepTheirIds) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(stream->Write(
        Request(absl::StrCat(i), absl::StrCat("prompt ", i), 20 + i, /*stream=*/i % 2 == 0)));
  }
  stream->WritesDone();
  const Answers answers = Drain(*stream);
  ASSERT_TRUE(answers.status.ok()) << answers.status.error_message();
  EXPECT_TRUE(answers.error.empty());
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(answers.text.at(absl::StrCat(i)), Expected(absl::StrCat("prompt ", i), 20 + i));
    EXPECT_EQ(answers.finals.at(absl::StrCat(i)), 1);
  }
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(InferStreamTest, ErrorsAreMessagesAndTheStreamGoesOn) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  inference::ModelInferRequest bad = Request("bad", "once", 4);
  bad.set_model_name("other");
  ASSERT_TRUE(stream->Write(bad));
  bad = Request("worse", "once", 4);
  (*bad.mutable_parameters())["colour"].set_string_param("red");
  ASSERT_TRUE(stream->Write(bad));
  ASSERT_TRUE(stream->Write(Request("good", "once", 4)));
  stream->WritesDone();
  const Answers answers = Drain(*stream);
  EXPECT_TRUE(answers.status.ok()) << answers.status.error_message();
  EXPECT_THAT(answers.error.at("bad"), HasSubstr("model 'other' is not served"));
  EXPECT_THAT(answers.error.at("worse"), HasSubstr("'colour' is not understood"));
  EXPECT_EQ(answers.text.at("good"), Expected("once", 4));
}

TEST_F(InferStreamTest, ErrorsEndTheCallWhereAskedTo) {
  grpc::ClientContext context;
  context.AddMetadata("triton_grpc_error", "true");
  auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(Request("long", "once", 60000)));
  inference::ModelStreamInferResponse message;
  ASSERT_TRUE(stream->Read(&message));
  inference::ModelInferRequest bad = Request("bad", "once", 4);
  bad.set_model_version("3");
  ASSERT_TRUE(stream->Write(bad));
  const Answers answers = Drain(*stream);  // though the client has not said it is done
  EXPECT_EQ(answers.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(answers.status.error_message(), HasSubstr("model_version '3'"));
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(InferStreamTest, MoreRequestsThanItTakesAtOnceAllGetTheirAnswers) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  const int count = 3 * static_cast<int>(kMaxStreamRequests);
  std::thread writer([&] {
    for (int i = 0; i < count; ++i) stream->Write(Request(absl::StrCat(i), "once", 3));
    stream->WritesDone();
  });
  const Answers answers = Drain(*stream);
  writer.join();
  EXPECT_TRUE(answers.status.ok()) << answers.status.error_message();
  EXPECT_EQ(answers.finals.size(), static_cast<size_t>(count));
  EXPECT_TRUE(answers.error.empty());
}

TEST_F(InferStreamTest, ACancelFreesAllItsRequests) {
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    auto stream = stub_->ModelStreamInfer(&context);
    for (int request = 0; request < 8; ++request) {
      stream->Write(Request(absl::StrCat(request), "once", 7000));
    }
    inference::ModelStreamInferResponse message;
    if (i % 2 == 0) stream->Read(&message);
    context.TryCancel();
    EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(server_.WaitIdle());
  }
}

TEST_F(InferStreamTest, AReaderThatDoesNotReadHoldsUpNobody) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(stream->Write(Request(absl::StrCat(i), "once", 10000)));
  stream->WritesDone();
  // Without reading: the requests run to their ends all the same.
  EXPECT_TRUE(server_.WaitFor(
      [&](const auto&) { return server_.metrics().requests_started.Value() == 4; }));
  EXPECT_TRUE(server_.WaitIdle());
  const Answers answers = Drain(*stream);
  EXPECT_TRUE(answers.status.ok()) << answers.status.error_message();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(answers.text.at(absl::StrCat(i)), Expected("once", 10000));
  EXPECT_LT(answers.messages, 4 * 10000);  // what waited left together
}

TEST_F(InferStreamTest, TheDeadlineOfTheCallIsThatOfItsRequests) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  auto stream = stub_->ModelStreamInfer(&context);
  stream->Write(Request("long", "once", 60000));
  EXPECT_EQ(Drain(*stream).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(InferStreamTest, ARequestsTimeoutIsItsOwn) {
  grpc::ClientContext context;
  auto stream = stub_->ModelStreamInfer(&context);
  inference::ModelInferRequest hurried = Request("hurried", "once", 60000);
  (*hurried.mutable_parameters())["timeout"].set_int64_param(1);
  stream->Write(hurried);
  stream->Write(Request("calm", "once", 30));
  stream->WritesDone();
  const Answers answers = Drain(*stream);
  EXPECT_TRUE(answers.status.ok());
  EXPECT_EQ(answers.error.count("hurried"), 1u);
  EXPECT_EQ(answers.text.at("calm"), Expected("once", 30));
}

// Ten thousand requests whose values are random, over streams of fifty.
TEST_F(InferStreamTest, MalformedRequestsEndInMessages) {
  Rng rng(4);
  int answered = 0;
  for (int call = 0; call < 200; ++call) {
    grpc::ClientContext context;
    auto stream = stub_->ModelStreamInfer(&context);
    std::thread writer([&] {
      for (int i = 0; i < 50; ++i) {
        inference::ModelInferRequest request = Request("x", "once", 3, /*stream=*/false);
        FillRandom(request, rng);
        request.set_id(absl::StrCat(i));
        stream->Write(request);
      }
      stream->WritesDone();
    });
    const Answers answers = Drain(*stream);
    writer.join();
    EXPECT_TRUE(answers.status.ok()) << answers.status.error_message();
    answered += static_cast<int>(answers.finals.size());
    EXPECT_GT(answers.error.size(), 10u);
  }
  EXPECT_EQ(answered, 10000);
  EXPECT_TRUE(server_.WaitIdle());
  EXPECT_EQ(server_.engine().snapshot().blocks_used, 0);
}

}  // namespace
}  // namespace asynctls::testing
