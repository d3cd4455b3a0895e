// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/vllm_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

namespace vllm_pb = ::vllm::grpc::engine;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

struct VllmOutcome {
  grpc::Status status;
  std::vector<vllm_pb::GenerateResponse> messages;
  std::map<uint32_t, std::vector<uint32_t>> ids;  // by index
  std::vector<vllm_pb::GenerateComplete> completes;
};

class VllmServiceTest : public ::testing::Test {
 protected:
  explicit VllmServiceTest(const TestServer::Options& options = TestServer::Defaults())
      : server_(options), stub_(vllm_pb::VllmEngine::NewStub(server_.channel())) {}

  static vllm_pb::GenerateRequest Request(const std::vector<uint32_t>& prompt, uint32_t tokens) {
    vllm_pb::GenerateRequest request;
    request.mutable_tokenized()->mutable_input_ids()->Assign(prompt.begin(), prompt.end());
    request.mutable_sampling_params()->set_temperature(0);
    request.mutable_sampling_params()->set_max_tokens(tokens);
    request.set_stream(true);
    return request;
  }

  VllmOutcome Generate(const vllm_pb::GenerateRequest& request) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    return Read(*reader);
  }
  static VllmOutcome Read(grpc::ClientReader<vllm_pb::GenerateResponse>& reader) {
    VllmOutcome out;
    for (vllm_pb::GenerateResponse message; reader.Read(&message);) {
      out.messages.push_back(message);
      const auto& chunk = message.chunk();
      auto& ids = out.ids[chunk.index()];
      ids.insert(ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      if (message.has_complete()) out.completes.push_back(message.complete());
    }
    out.status = reader.Finish();
    return out;
  }

  void Abort(const std::string& id) {
    grpc::ClientContext context;
    vllm_pb::AbortRequest request;
    request.add_request_ids("never seen");
    request.add_request_ids(id);
    request.add_request_ids(id);
    vllm_pb::AbortResponse response;
    EXPECT_TRUE(stub_->Abort(&context, request, &response).ok());
  }

  TestServer server_;
  std::unique_ptr<vllm_pb::VllmEngine::Stub> stub_;
};

TEST_F(VllmServiceTest, StreamsWhatTheModelSays) {
  const std::vector<uint32_t> prompt = {3, 4, 5, 6};
  const VllmOutcome out = Generate(Request(prompt, 30));
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_THAT(out.ids.at(0), ElementsAreArray(ExpectedReply(prompt, 30, kDemoVocab)));
  ASSERT_EQ(out.completes.size(), 1u);
  EXPECT_TRUE(out.messages.back().has_complete());
  EXPECT_EQ(out.completes[0].finish_reason(), "length");
  EXPECT_EQ(out.completes[0].prompt_tokens(), 4u);
  EXPECT_EQ(out.completes[0].completion_tokens(), 30u);
  EXPECT_EQ(server_.metrics().requests_by(Protocol::kVllm).Value(), 1);
}

TEST_F(VllmServiceTest, TextPromptsAndOneMessageReplies) {
  vllm_pb::GenerateRequest request = Request({1}, 12);
  request.set_text("The wise lamp");
  request.set_stream(false);
  const VllmOutcome out = Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  ASSERT_EQ(out.messages.size(), 1u);
  EXPECT_THAT(out.completes.at(0).output_ids(),
              ElementsAreArray(ExpectedReply(
                  *server_.tokenizer().Encode("The wise lamp", true), 12, kDemoVocab)));
}

TEST_F(VllmServiceTest, EverySequenceHasItsChunksAndItsComplete) {
  vllm_pb::GenerateRequest request = Request({1, 2, 3}, 10);
  request.mutable_sampling_params()->set_n(3);
  for (bool stream : {true, false}) {
    request.set_stream(stream);
    VllmOutcome out = Generate(request);
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    std::map<uint32_t, uint32_t> tokens;
    for (const auto& complete : out.completes) {
      tokens[complete.index()] = complete.completion_tokens();
      EXPECT_EQ(complete.output_ids_size(), stream ? 0 : 10);
    }
    EXPECT_EQ(tokens, (std::map<uint32_t, uint32_t>{{0, 10}, {1, 10}, {2, 10}}));
    EXPECT_EQ(out.ids[2].size(), stream ? 10u : 0u);
  }
}

TEST_F(VllmServiceTest, StopStringsEndTheReplyThoughNoTextGoesOut) {
  const std::vector<uint32_t> prompt = {3, 1, 4};
  const std::vector<uint32_t> reply = ExpectedReply(prompt, 40, kDemoVocab);
  std::string stop;
  for (size_t i = 5; i < reply.size() && stop.empty(); ++i) {
    const std::string bytes(server_.tokenizer().BytesOf(reply[i]));
    const auto ascii = [](char c) { return c > 0; };
    if (bytes.size() >= 3 && std::all_of(bytes.begin(), bytes.end(), ascii)) stop = bytes;
  }
  ASSERT_FALSE(stop.empty());
  vllm_pb::GenerateRequest request = Request(prompt, 40);
  request.mutable_sampling_params()->add_stop(stop);
  const VllmOutcome out = Generate(request);
  ASSERT_EQ(out.completes.size(), 1u);
  EXPECT_EQ(out.completes[0].finish_reason(), "stop");
  EXPECT_EQ(out.completes[0].matched_stop_str(), stop);
  EXPECT_EQ(out.completes[0].completion_tokens(), out.ids.at(0).size());
  EXPECT_LT(out.ids.at(0).size(), 40u);
}

TEST_F(VllmServiceTest, StopIdsEndTheReply) {
  const std::vector<uint32_t> prompt = {3, 1, 4};
  vllm_pb::GenerateRequest request = Request(prompt, 40);
  const uint32_t stop = ExpectedReply(prompt, 10, kDemoVocab)[6];
  request.mutable_sampling_params()->add_stop_token_ids(stop);
  const VllmOutcome out = Generate(request);
  ASSERT_EQ(out.completes.size(), 1u);
  EXPECT_EQ(out.completes[0].matched_token_id(), stop);
  EXPECT_LE(out.ids.at(0).size(), 6u);
}

TEST_F(VllmServiceTest, LogProbsCoverPromptAndReply) {
  std::vector<uint32_t> prompt;
  for (uint32_t i = 0; i < 3000; ++i) prompt.push_back(i % 1999);
  vllm_pb::GenerateRequest request = Request(prompt, 5);
  request.mutable_sampling_params()->set_logprobs(2);
  request.mutable_sampling_params()->set_prompt_logprobs(1);
  for (bool stream : {true, false}) {
    request.set_stream(stream);
    const VllmOutcome out = Generate(request);
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    vllm_pb::InputLogProbs input = out.completes.at(0).input_logprobs();
    vllm_pb::OutputLogProbs output = out.completes.at(0).output_logprobs();
    for (const auto& message : out.messages) {
      input.MergeFrom(message.chunk().input_logprobs());
      output.MergeFrom(message.chunk().output_logprobs());
    }
    EXPECT_THAT(input.token_ids(), ElementsAreArray(prompt));
    ASSERT_EQ(input.token_logprobs_size(), 3000);
    EXPECT_FALSE(input.token_logprobs(0).has_value());
    EXPECT_TRUE(input.token_logprobs(1).has_value());
    EXPECT_EQ(input.top_logprobs(2999).values_size(), 1);
    EXPECT_THAT(output.token_ids(), ElementsAreArray(ExpectedReply(prompt, 5, kDemoVocab)));
    EXPECT_EQ(output.top_logprobs(4).token_ids_size(), 2);
  }
}

std::string FieldOf(const grpc::Status& status) {
  google::rpc::Status rich;
  google::rpc::BadRequest detail;
  rich.ParseFromString(status.error_details());
  for (const auto& any : rich.details()) {
    if (any.UnpackTo(&detail)) return detail.field_violations(0).field();
  }
  return "";
}

struct Malformed {
  std::string field;
  std::string message;
  std::function<void(vllm_pb::GenerateRequest&)> spoil;
};

TEST_F(VllmServiceTest, MalformedRequestsAreRefusedByField) {
  const auto params = [](vllm_pb::GenerateRequest& r) { return r.mutable_sampling_params(); };
  const std::vector<Malformed> cases = {
      {"prompt", "one of tokenized and text is required", [](auto& r) { r.clear_input(); }},
      {"tokenized.input_ids",
       "is empty",
       [](auto& r) { r.mutable_tokenized()->clear_input_ids(); }},
      {"tokenized.input_ids",
       "tokenized.input_ids[1] is 2048; ids end at 2047",
       [](auto& r) { r.mutable_tokenized()->add_input_ids(kDemoVocab); }},
      {"text", "is empty", [](auto& r) { r.set_text(""); }},
      {"prompt",
       "the limit is 65535",
       [](auto& r) { r.mutable_tokenized()->mutable_input_ids()->Resize(70000, 1); }},
      {"request_id", "129 bytes", [](auto& r) { r.set_request_id(std::string(129, 'x')); }},
      {"request_id", "printable", [](auto& r) { r.set_request_id("a\n"); }},
      {"sampling_params.temperature", "nan", [&](auto& r) { params(r)->set_temperature(NAN); }},
      {"sampling_params.temperature", "1e+38", [&](auto& r) { params(r)->set_temperature(1e38f); }},
      {"sampling_params.top_p", "-0.1", [&](auto& r) { params(r)->set_top_p(-0.1f); }},
      {"sampling_params.top_p", "1.5", [&](auto& r) { params(r)->set_top_p(1.5f); }},
      {"sampling_params.min_p", "2", [&](auto& r) { params(r)->set_min_p(2); }},
      {"sampling_params.presence_penalty",
       "3",
       [&](auto& r) { params(r)->set_presence_penalty(3); }},
      {"sampling_params.frequency_penalty",
       "inf",
       [&](auto& r) { params(r)->set_frequency_penalty(INFINITY); }},
      {"sampling_params.repetition_penalty",
       "11",
       [&](auto& r) { params(r)->set_repetition_penalty(11); }},
      {"sampling_params.n", "1000000", [&](auto& r) { params(r)->set_n(1000000); }},
      {"sampling_params.max_tokens", "at least 1", [&](auto& r) { params(r)->set_max_tokens(0); }},
      {"sampling_params.max_tokens",
       "4294967295",
       [&](auto& r) { params(r)->set_max_tokens(UINT32_MAX); }},
      {"sampling_params.min_tokens", "max_tokens", [&](auto& r) { params(r)->set_min_tokens(5); }},
      {"sampling_params.stop", "empty string", [&](auto& r) { params(r)->add_stop(""); }},
      {"sampling_params.stop",
       "257 bytes",
       [&](auto& r) { params(r)->add_stop(std::string(257, 'x')); }},
      {"sampling_params.stop_token_ids",
       "ids end at",
       [&](auto& r) { params(r)->add_stop_token_ids(UINT32_MAX); }},
      {"sampling_params.logit_bias",
       "outside",
       [&](auto& r) { (*params(r)->mutable_logit_bias())[1] = NAN; }},
      {"sampling_params.logit_bias",
       "ids end at",
       [&](auto& r) { (*params(r)->mutable_logit_bias())[INT32_MAX] = 1; }},
      {"sampling_params.logprobs", "-1", [&](auto& r) { params(r)->set_logprobs(-1); }},
  };
  for (const Malformed& malformed : cases) {
    vllm_pb::GenerateRequest request = Request({1}, 4);
    malformed.spoil(request);
    const VllmOutcome out = Generate(request);
    EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << malformed.field;
    EXPECT_EQ(FieldOf(out.status), malformed.field) << out.status.error_message();
    EXPECT_THAT(out.status.error_message(), HasSubstr(malformed.message));
    EXPECT_TRUE(out.messages.empty());
  }
  vllm_pb::GenerateRequest constrained = Request({1}, 4);
  constrained.mutable_sampling_params()->set_json_schema("{}");
  EXPECT_EQ(Generate(constrained).status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(server_.metrics().finished(::asynctls::Outcome::kRejected).Value(), cases.size() + 1);
  EXPECT_EQ(server_.metrics().requests_by(Protocol::kVllm).Value(), cases.size() + 1);
  EXPECT_TRUE(Generate(Request({1}, 4)).status.ok());
  EXPECT_TRUE(server_.WaitIdle());
}

// One long request, cancelled by its client and aborted by id, in either order, again and again.
TEST_F(VllmServiceTest, CancelAndAbortMayComeInAnyOrder) {
  for (int i = 0; i < 20; ++i) {
    vllm_pb::GenerateRequest request = Request({1, 2}, 60000);
    request.set_request_id("same");
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    vllm_pb::GenerateResponse message;
    const bool started = i % 4 >= 2 || reader->Read(&message);
    ASSERT_TRUE(started);
    if (i % 2 == 0) context.TryCancel();
    Abort("same");
    if (i % 2 == 1) context.TryCancel();
    const VllmOutcome out = Read(*reader);
    if (!out.status.ok()) {
      EXPECT_EQ(out.status.error_code(), grpc::StatusCode::CANCELLED);
    }
    ASSERT_TRUE(server_.WaitIdle());
    Abort("same");  // of an ended one
    // The name is free again once the call has ended on the server's side too.
    const auto free = [&] {
      vllm_pb::GenerateRequest next = Request({1, 2}, 1);
      next.set_request_id("same");
      return Generate(next).status.ok();
    };
    bool is_free = false;
    for (int attempt = 0; attempt < 1000 && !is_free; ++attempt) is_free = free();
    ASSERT_TRUE(is_free);
  }
  EXPECT_EQ(server_.engine().snapshot().blocks_used, 0);
}

TEST_F(VllmServiceTest, AnAbortedReplyIsComplete) {
  vllm_pb::GenerateRequest request = Request({1, 2}, 60000);
  request.set_request_id("long");
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  vllm_pb::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  Abort("long");
  const VllmOutcome out = Read(*reader);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  ASSERT_EQ(out.completes.size(), 1u);
  EXPECT_EQ(out.completes[0].finish_reason(), "abort");
  EXPECT_TRUE(server_.WaitIdle());
}

TEST_F(VllmServiceTest, TellsModelServerAndLoads) {
  Generate(Request({1, 2}, 3));
  vllm_pb::GetModelInfoResponse model;
  grpc::ClientContext first, second, third, fourth, fifth;
  ASSERT_TRUE(stub_->GetModelInfo(&first, {}, &model).ok());
  EXPECT_EQ(model.served_model_name(), "fake");
  EXPECT_TRUE(model.is_generation());
  EXPECT_EQ(model.max_req_input_len(), 65535);
  EXPECT_EQ(model.vocab_size(), kDemoVocab);
  vllm_pb::GetServerInfoResponse info;
  ASSERT_TRUE(stub_->GetServerInfo(&second, {}, &info).ok());
  EXPECT_EQ(info.server_type(), "vllm-grpc");
  EXPECT_EQ(info.data_parallel_size(), 1);
  EXPECT_EQ(info.active_requests(), 0u);
  EXPECT_GT(info.last_receive_timestamp(), 1e9);
  vllm_pb::GetLoadsResponse loads;
  ASSERT_TRUE(stub_->GetLoads(&third, {}, &loads).ok());
  ASSERT_EQ(loads.loads_size(), 1);
  EXPECT_EQ(loads.loads(0).max_total_num_tokens(), 65536);
  EXPECT_EQ(loads.loads(0).max_running_requests(), 32);
  vllm_pb::GetLoadsRequest other;
  other.set_dp_rank(3);
  ASSERT_TRUE(stub_->GetLoads(&fourth, other, &loads).ok());
  EXPECT_EQ(loads.loads_size(), 0);
  vllm_pb::HealthCheckResponse health;
  ASSERT_TRUE(stub_->HealthCheck(&fifth, {}, &health).ok());
  EXPECT_TRUE(health.healthy());
}

TEST_F(VllmServiceTest, WhatIsNotServedSaysSo) {
  grpc::ClientContext embed, events, tokenizer;
  vllm_pb::EmbedResponse embedding;
  const grpc::Status status = stub_->Embed(&embed, {}, &embedding);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("Embed"));
  auto batches = stub_->SubscribeKvEvents(&events, {});
  smg::grpc::common::KvEventBatch batch;
  EXPECT_FALSE(batches->Read(&batch));
  EXPECT_EQ(batches->Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  auto chunks = stub_->GetTokenizer(&tokenizer, {});  // the model's folder is "fake"
  smg::grpc::common::GetTokenizerChunk chunk;
  EXPECT_FALSE(chunks->Read(&chunk));
  EXPECT_EQ(chunks->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

class VllmTokenizerTest : public VllmServiceTest {
 protected:
  static TestServer::Options Demo() {
    TestServer::Options options = TestServer::Defaults();
    options.config.set_model(std::string(ASYNCTLS_SOURCE_DIR) + "/deploy/models/demo-qwen3");
    return options;
  }
  VllmTokenizerTest() : VllmServiceTest(Demo()) {}
};

TEST_F(VllmTokenizerTest, TheTokenizerComesInChunks) {
  TokenizerArchive archive(Demo().config.model());
  const auto expected = archive.Get();
  ASSERT_TRUE(expected.ok()) << expected.status();
  grpc::ClientContext context;
  auto reader = stub_->GetTokenizer(&context, {});
  std::string zip, sha;
  int chunks = 0;
  for (smg::grpc::common::GetTokenizerChunk chunk; reader->Read(&chunk); ++chunks) {
    EXPECT_EQ(sha, "");  // on the last one only
    zip += chunk.data();
    sha = chunk.sha256();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_GT(chunks, 1);
  EXPECT_EQ(zip, (*expected)->zip);
  EXPECT_EQ(sha, (*expected)->sha256);
}

class VllmLoadingTest : public VllmServiceTest {
 protected:
  static TestServer::Options Loading() {
    TestServer::Options options = TestServer::Defaults();
    options.open = false;
    return options;
  }
  VllmLoadingTest() : VllmServiceTest(Loading()) {}
};

TEST_F(VllmLoadingTest, ALoadingServerIsUnavailableAndSaysSo) {
  EXPECT_EQ(Generate(Request({1}, 2)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext first, second;
  vllm_pb::HealthCheckResponse health;
  ASSERT_TRUE(stub_->HealthCheck(&first, {}, &health).ok());
  EXPECT_FALSE(health.healthy());
  EXPECT_THAT(health.message(), HasSubstr("loading"));
  vllm_pb::GetLoadsResponse loads;
  EXPECT_EQ(stub_->GetLoads(&second, {}, &loads).error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace asynctls::testing
