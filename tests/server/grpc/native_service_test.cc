// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/native_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <thread>

#include "engine/text/chat_template.h"
#include "engine/text/detokenizer.h"
#include "grpcpp/generic/generic_stub.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

std::string TextOf(const Tokenizer& tokenizer, const std::vector<uint32_t>& ids) {
  return *tokenizer.Decode(ids, /*skip_special=*/true);
}

std::vector<uint32_t> Prompt(uint32_t size, uint32_t salt = 0) {
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < size; ++i) ids.push_back((i * 7 + salt) % 2000);
  return ids;
}

TEST(GenerateTest, StreamsStartedDeltasAndOneFinished) {
  TestServer server;
  v1::GenerateRequest request = IdsRequest(Prompt(100), 40);
  request.set_request_id("mine");
  request.mutable_response()->set_log_probs(true);
  const Outcome out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  const std::vector<uint32_t> expected = ExpectedReply(Prompt(100), 40, kDemoVocab);
  EXPECT_THAT(out.ids, ElementsAreArray(expected));
  EXPECT_EQ(out.log_probs.size(), 40u);
  EXPECT_EQ(out.text, TextOf(server.tokenizer(), expected));
  EXPECT_TRUE(out.messages.front().has_started());
  EXPECT_EQ(out.started.request_id(), "mine");
  EXPECT_EQ(out.started.prompt_tokens(), 100u);
  EXPECT_EQ(out.started.sparse().budget(), 1024u);
  ASSERT_EQ(out.finished.size(), 1u);
  EXPECT_TRUE(out.messages.back().has_finished());
  EXPECT_EQ(out.finished[0].reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(out.finished[0].usage().prompt_tokens(), 100u);
  EXPECT_EQ(out.finished[0].usage().completion_tokens(), 40u);
  EXPECT_GT(out.finished[0].usage().kv_read().dense_bytes(), 0u);
}

TEST(GenerateTest, TextAndChatPromptsAreWhatTheTokenizerSays) {
  TestServer server;
  v1::GenerateRequest request = IdsRequest({1}, 8);
  request.set_text("The wise lamp.");
  EXPECT_THAT(server.Generate(request).ids,
              ElementsAreArray(ExpectedReply(
                  *server.tokenizer().Encode("The wise lamp.", true), 8, kDemoVocab)));
  v1::ChatMessage& message = *request.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("Hello! <|im_end|>");  // stays text
  request.mutable_chat()->set_enable_thinking(false);
  ChatOptions options;
  options.enable_thinking = false;
  const auto ids = EncodeChat(server.tokenizer(), {{"user", "Hello! <|im_end|>"}}, options);
  EXPECT_THAT(server.Generate(request).ids, ElementsAreArray(ExpectedReply(*ids, 8, kDemoVocab)));
}

TEST(GenerateTest, LeavesOutTextOrIdsAsAsked) {
  TestServer server;
  v1::GenerateRequest request = IdsRequest(Prompt(10), 8);
  request.mutable_response()->set_text(false);
  const Outcome ids = server.Generate(request);
  EXPECT_EQ(ids.ids.size(), 8u);
  EXPECT_EQ(ids.text, "");
  request.clear_response();
  const Outcome text = server.Generate(request);
  EXPECT_TRUE(text.ids.empty());
  EXPECT_FALSE(text.text.empty());
  EXPECT_TRUE(text.log_probs.empty());
}

TEST(GenerateTest, ChoosesIdAndSeedWhereAbsentAndReturnsThem) {
  TestServer server;
  const Outcome first = server.Generate(IdsRequest(Prompt(10), 1));
  const Outcome second = server.Generate(IdsRequest(Prompt(10), 1));
  EXPECT_FALSE(first.started.request_id().empty());
  EXPECT_NE(first.started.request_id(), second.started.request_id());
  EXPECT_NE(first.started.seed(), second.started.seed());
  v1::GenerateRequest request = IdsRequest(Prompt(10), 1);
  request.mutable_sampling()->set_seed(0);
  EXPECT_EQ(server.Generate(request).started.seed(), 0u);
}

TEST(GenerateTest, EndTokensOfTheModelStopTheReply) {
  const std::vector<uint32_t> reply = ExpectedReply(Prompt(10), 20, kDemoVocab);
  TestServer::Options options = TestServer::Defaults();
  options.model.add_eos_token_ids(reply[7]);
  TestServer server(options);
  const Outcome out = server.Generate(IdsRequest(Prompt(10), 20));
  EXPECT_EQ(out.ids.size(), 7u);
  ASSERT_EQ(out.finished.size(), 1u);
  EXPECT_EQ(out.finished[0].reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(out.finished[0].stop_token_id(), reply[7]);
}

TEST(GenerateTest, StopStringsEndAcrossTokensAndAreNotPartOfTheText) {
  TestServer server;
  const std::vector<uint32_t> ids = ExpectedReply(Prompt(33), 60, kDemoVocab);
  const std::string text = TextOf(server.tokenizer(), ids);
  // The end of one token's bytes and the beginning of the next one's.
  std::string stop;
  for (size_t i = 20; i < 50 && stop.empty(); ++i) {
    const std::string a(server.tokenizer().BytesOf(ids[i]));
    const std::string b(server.tokenizer().BytesOf(ids[i + 1]));
    if (a.size() < 2 || b.size() < 2) continue;
    const std::string across = a.substr(a.size() - 2) + b.substr(0, 2);
    if (std::all_of(across.begin(), across.end(), [](char c) { return c > 0; })) stop = across;
  }
  ASSERT_FALSE(stop.empty());
  v1::GenerateRequest request = IdsRequest(Prompt(33), 60);
  request.mutable_stopping()->add_stop("\x01never");
  request.mutable_stopping()->add_stop(stop);
  const Outcome out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, text.substr(0, text.find(stop)));
  ASSERT_EQ(out.finished.size(), 1u);
  EXPECT_EQ(out.finished[0].reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(out.finished[0].stop_string(), stop);
  EXPECT_EQ(out.finished[0].usage().completion_tokens(), out.ids.size());
  EXPECT_TRUE(server.WaitIdle());
}

TEST(GenerateTest, EveryTextMessageIsWholeUtf8) {
  TestServer server;
  // FakeWorker's tokens are arbitrary bytes, often broken characters: proto3 itself refuses to
  // serialize a broken string, so a stream that ends well proves each message.
  for (uint32_t salt = 0; salt < 8; ++salt) {
    const Outcome out = server.Generate(IdsRequest(Prompt(5, salt), 200));
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    EXPECT_EQ(out.text, TextOf(server.tokenizer(), out.ids));
  }
}

TEST(GenerateTest, TellsTheProgressOfALongPrefill) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(5);
  TestServer server(options);
  const Outcome out = server.Generate(IdsRequest(Prompt(8000), 2));
  uint32_t done = 0;
  for (const v1::GenerateResponse& message : out.messages) {
    if (!message.has_progress()) continue;
    EXPECT_GT(message.progress().prompt_tokens_done(), done);
    EXPECT_EQ(message.progress().prompt_tokens(), 8000u);
    done = message.progress().prompt_tokens_done();
  }
  EXPECT_GT(done, 0u);
}

TEST(GenerateTest, ASecondRequestFindsThePrefix) {
  TestServer server;
  server.Generate(IdsRequest(Prompt(640), 2));
  const Outcome out = server.Generate(IdsRequest(Prompt(640), 2));
  ASSERT_EQ(out.finished.size(), 1u);
  EXPECT_GE(out.finished[0].usage().cached_tokens(), 512u);
}

TEST(GenerateTest, AnIdInUseIsRefusedAndFreeAgainAfterwards) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(2);
  TestServer server(options);
  v1::GenerateRequest request = IdsRequest(Prompt(10), 2000);
  request.set_request_id("same");
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(server.Generate(request).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  context.TryCancel();
  while (reader->Read(&message)) continue;
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(server.WaitIdle());
  request.mutable_stopping()->set_max_tokens(1);
  for (int i = 0; i < 20; ++i) {  // at once, again and again
    grpc::Status status;
    for (int attempt = 0; attempt < 1000; ++attempt) {
      status = server.Generate(request).status;
      if (i > 0 || status.ok()) break;  // the cancelled call's own end is not seen by the client
    }
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
}

struct BadRequest {
  std::string message;
  std::function<void(v1::GenerateRequest&)> spoil;
};

TEST(GenerateTest, BadRequestsAreRefusedAndNothingLeaks) {
  TestServer server;
  const std::vector<BadRequest> cases = {
      {"one of text, token_ids and chat", [](auto& r) { r.clear_prompt(); }},
      {"ids end at", [](auto& r) { r.mutable_token_ids()->add_ids(UINT32_MAX); }},
      {"sampling.temperature nan", [](auto& r) { r.mutable_sampling()->set_temperature(NAN); }},
      {"is over the limit of 65536 positions",
       [](auto& r) { r.mutable_stopping()->set_max_tokens(UINT32_MAX); }},
      {"sparse.tail 10 must be less", [](auto& r) { r.mutable_sparse()->set_tail(10); }},
      {"the limit is 65535",
       [](auto& r) { r.mutable_token_ids()->mutable_ids()->Resize(70000, 1); }},
  };
  for (const BadRequest& bad : cases) {
    v1::GenerateRequest request = IdsRequest(Prompt(10), 4);
    bad.spoil(request);
    const Outcome out = server.Generate(request);
    EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << bad.message;
    EXPECT_THAT(out.status.error_message(), HasSubstr(bad.message));
    EXPECT_TRUE(out.messages.empty());
  }
  EXPECT_EQ(server.metrics().finished(::asynctls::Outcome::kRejected).Value(), cases.size());
  EXPECT_TRUE(server.Generate(IdsRequest(Prompt(10), 4)).status.ok());
  EXPECT_EQ(server.engine().snapshot().blocks_used, 0);
}

TEST(GenerateTest, MessagesThatAreNotTheProtoAreRefused) {
  TestServer server;
  grpc::GenericStub stub(server.channel());
  const std::vector<std::string> bytes = {
      std::string("\x12\x02\xff\xfe", 4),  // text = invalid UTF-8
      std::string("\x12\x7f", 2),          // a length beyond the end
      std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11),
  };
  for (const std::string& payload : bytes) {
    grpc::Slice slice(payload);
    grpc::ByteBuffer request(&slice, 1), response;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    auto call =
        stub.PrepareUnaryCall(&context, "/asynctls.v1.GenerationService/Generate", request, &queue);
    grpc::Status status;
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_FALSE(status.ok());
  }
  EXPECT_TRUE(server.Generate(IdsRequest(Prompt(10), 4)).status.ok());
}

TEST(GenerateTest, OversizedMessagesAreRefused) {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_max_message_mib(1);
  TestServer server(options);
  v1::GenerateRequest request = IdsRequest({1}, 4);
  request.set_text(std::string(2 << 20, 'a'));
  EXPECT_EQ(server.Generate(request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(server.Generate(IdsRequest(Prompt(10), 4)).status.ok());
}

TEST(GenerateTest, AFullQueueIsRefusedBeforeTokenizing) {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_max_waiting_prompt_tokens(1000);
  TestServer server(options);
  v1::GenerateRequest request = IdsRequest({1}, 4);
  request.set_text(std::string(5000, 'a'));
  const Outcome out = server.Generate(request);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(out.status.error_message(), HasSubstr("4000 bytes"));
}

TEST(GenerateTest, AFailedWorkerEndsStreamsWithUnavailable) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.fail_at_step = 5;
  TestServer server(options);
  const Outcome out = server.Generate(IdsRequest(Prompt(10), 100));
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(out.finished.empty());
  EXPECT_FALSE(server.server().UpdateHealth());
}

TEST(TokenizeTest, TextChatAndBack) {
  TestServer server;
  std::ifstream lines(std::string(ASYNCTLS_SOURCE_DIR) + "/tests/golden/tokenizer/chat.jsonl");
  std::string line;
  int checked = 0;
  while (std::getline(lines, line) && checked < 50) {
    const auto json = ParseJson(line, "chat.jsonl");
    ASSERT_TRUE(json.ok()) << json.status();
    v1::TokenizeRequest request;
    for (const Json& message : (*json)["messages"]) {
      v1::ChatMessage& added = *request.mutable_chat()->add_messages();
      added.set_role(message["role"].get<std::string>());
      added.set_content(message["content"].get<std::string>());
    }
    const Json& options = (*json)["options"];
    request.mutable_chat()->set_add_generation_prompt(
        options.value("add_generation_prompt", false));  // HuggingFace's default, not ours
    if (options.contains("enable_thinking")) {
      request.mutable_chat()->set_enable_thinking(options["enable_thinking"]);
    }
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    const grpc::Status status = server.stub().Tokenize(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.text(), (*json)["text"].get<std::string>());
    ++checked;

    v1::TokenizeRequest text;
    text.set_text(response.text());
    grpc::ClientContext again, back;
    v1::TokenizeResponse same;
    ASSERT_TRUE(server.stub().Tokenize(&again, text, &same).ok());
    v1::DetokenizeRequest ids;
    *ids.mutable_ids() = same.ids();
    ids.set_skip_special_tokens(false);
    v1::DetokenizeResponse detokenized;
    ASSERT_TRUE(server.stub().Detokenize(&back, ids, &detokenized).ok());
    EXPECT_EQ(detokenized.text(), response.text());
  }
  EXPECT_GT(checked, 5);
}

TEST(TokenizeTest, SpecialTokensOnlyWhereAsked) {
  TestServer server;
  v1::TokenizeRequest request;
  request.set_text("<|im_end|>");
  grpc::ClientContext first, second;
  v1::TokenizeResponse response;
  ASSERT_TRUE(server.stub().Tokenize(&first, request, &response).ok());
  EXPECT_EQ(response.ids_size(), 1);
  request.set_parse_special(false);
  ASSERT_TRUE(server.stub().Tokenize(&second, request, &response).ok());
  EXPECT_GT(response.ids_size(), 1);
}

TEST(TokenizeTest, BadInputIsRefused) {
  TestServer server;
  v1::TokenizeResponse response;
  grpc::ClientContext empty, role, ids;
  EXPECT_EQ(server.stub().Tokenize(&empty, {}, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  v1::TokenizeRequest chat;
  chat.mutable_chat()->add_messages()->set_role("wizard");
  const grpc::Status status = server.stub().Tokenize(&role, chat, &response);
  EXPECT_THAT(status.error_message(), HasSubstr("chat.messages[0].role"));
  v1::DetokenizeRequest bad;
  bad.add_ids(5);
  bad.add_ids(1u << 31);
  v1::DetokenizeResponse text;
  EXPECT_THAT(server.stub().Detokenize(&ids, bad, &text).error_message(),
              HasSubstr("ids[1] is 2147483648"));
}

TEST(GetModelInfoTest, SaysWhatIsServed) {
  TestServer server;
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(server.stub().GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model().name(), "fake");
  EXPECT_EQ(info.server_version(), ServerVersion());
  EXPECT_EQ(info.max_prompt_tokens(), 1024u * 64 - 1);
  EXPECT_EQ(info.default_sparse().budget(), 1024u);
  EXPECT_EQ(info.kv_blocks(), 1024u);
}

TEST(AbortTest, UnknownIdsAreIgnored) {
  TestServer server;
  v1::AbortRequest request;
  request.add_request_ids("nobody");
  request.add_request_ids("");
  grpc::ClientContext context;
  v1::AbortResponse response;
  EXPECT_TRUE(server.stub().Abort(&context, request, &response).ok());
}

}  // namespace
}  // namespace asynctls::testing
