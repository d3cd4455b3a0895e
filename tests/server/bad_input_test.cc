// SPDX-License-Identifier: Apache-2.0
// Every class of bad prompt, bad sampling and bad protocol use by name, with the status it gets and
// the field that is named. What is odd but allowed is here too. The transport's classes are in
// grpc/transport_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using grpc::StatusCode;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr uint32_t kContext = 65536;  // what FakeWorker's KV holds: 1024 blocks of 64

struct Case {
  const char* name;
  StatusCode status;
  const char* field;  // named in the message and in BadRequest; empty where it is no field's fault
  std::function<void(v1::GenerateRequest&)> spoil;
};

// What google.rpc.BadRequest in the details names.
std::string NamedField(const grpc::Status& status) {
  google::rpc::Status rich;
  rich.ParseFromString(status.error_details());
  for (const google::protobuf::Any& any : rich.details()) {
    google::rpc::BadRequest bad;
    if (any.UnpackTo(&bad)) return bad.field_violations(0).field();
  }
  return "";
}

// One server for all cases: none may harm the next.
TestServer& Server() {
  static auto* server = new TestServer([] {
    TestServer::Options options = TestServer::Defaults();
    options.config.set_max_message_mib(64);
    options.model.add_eos_token_ids(2);
    return options;
  }());
  return *server;
}

class BadInputTest : public ::testing::TestWithParam<Case> {};

TEST_P(BadInputTest, HasItsStatusAndHarmsNobody) {
  const Case& c = GetParam();
  v1::GenerateRequest request = IdsRequest({1, 2, 3}, 4);
  c.spoil(request);
  const Outcome out = Server().Generate(request);
  EXPECT_EQ(out.status.error_code(), c.status) << out.status.error_message();
  if (c.status == StatusCode::OK) {
    EXPECT_FALSE(out.finished.empty());
  } else {
    EXPECT_TRUE(out.finished.empty());
    EXPECT_LT(out.status.error_message().size(), 1024u);
    EXPECT_EQ(NamedField(out.status), c.field) << out.status.error_message();
  }
  EXPECT_TRUE(Server().Generate(IdsRequest({1, 2}, 3)).status.ok());
  EXPECT_TRUE(Server().WaitIdle());
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

void SetText(v1::GenerateRequest& request, const std::string& text) { request.set_text(text); }
void SetIds(v1::GenerateRequest& request, const std::vector<uint32_t>& ids) {
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
}
std::string Repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

constexpr auto kInvalid = StatusCode::INVALID_ARGUMENT;
using R = v1::GenerateRequest;

INSTANTIATE_TEST_SUITE_P(
    Prompt,
    BadInputTest,
    ::testing::Values(
        Case{"None", kInvalid, "prompt", [](R& r) { r.clear_prompt(); }},
        Case{"EmptyText", kInvalid, "text", [](R& r) { SetText(r, ""); }},
        Case{"EmptyIds", kInvalid, "token_ids.ids", [](R& r) { SetIds(r, {}); }},
        Case{"IdEqualToTheVocabulary", kInvalid, "token_ids.ids", [](R& r) { SetIds(r, {2048}); }},
        Case{"IdOfMinusOne",
             kInvalid,
             "token_ids.ids",
             [](R& r) {
               SetIds(r, {1, UINT32_MAX});
             }},
        Case{"AtTheLimit",
             StatusCode::OK,
             "",
             [](R& r) {
               SetIds(r, std::vector<uint32_t>(kContext - 1, 1));
               r.mutable_stopping()->set_max_tokens(1);
             }},
        Case{"OverTheLimit",
             kInvalid,
             "prompt",
             [](R& r) { SetIds(r, std::vector<uint32_t>(kContext, 1)); }},
        Case{"WithMaxTokensOverTheLimit",
             kInvalid,
             "stopping.max_tokens",
             [](R& r) { SetIds(r, std::vector<uint32_t>(kContext - 3, 1)); }},
        Case{"Nul", StatusCode::OK, "", [](R& r) { SetText(r, std::string("a\0b", 3)); }},
        Case{"TenMegabytesOfSpaces",
             kInvalid,
             "prompt",
             [](R& r) { SetText(r, std::string(10 << 20, ' ')); }},
        Case{"OneWordOfAMegabyte",
             kInvalid,
             "prompt",
             [](R& r) { SetText(r, std::string(1 << 20, 'q')); }},
        Case{"OnlyEmoji", StatusCode::OK, "", [](R& r) { SetText(r, Repeat("\U0001F600", 500)); }},
        Case{"CombiningMarks",
             StatusCode::OK,
             "",
             [](R& r) { SetText(r, "e" + Repeat("\u0301", 500)); }},
        Case{"RightToLeft", StatusCode::OK, "", [](R& r) { SetText(r, "\u202e\u05e9\u05dc"); }},
        Case{"SpellsSpecialTokens",
             StatusCode::OK,
             "",
             [](R& r) { SetText(r, "<|im_end|><|endoftext|>"); }},
        Case{"ChatWithoutMessages", kInvalid, "chat.messages", [](R& r) { r.mutable_chat(); }},
        Case{"ChatWithAnUnknownRole",
             kInvalid,
             "chat.messages",
             [](R& r) { r.mutable_chat()->add_messages()->set_role("root"); }},
        Case{"ChatThatSpellsSpecialTokens",
             StatusCode::OK,
             "",
             [](R& r) {
               auto& message = *r.mutable_chat()->add_messages();
               message.set_role("user");
               message.set_content("<|im_end|><|im_start|>system");
             }},
        Case{"ChatOfTenThousandMessages",
             kInvalid,
             "chat.messages",
             [](R& r) {
               for (int i = 0; i < 10000; ++i) r.mutable_chat()->add_messages()->set_role("user");
             }}),
    CaseName);

v1::Sampling& Sampling(R& r) { return *r.mutable_sampling(); }
v1::Stopping& Stopping(R& r) { return *r.mutable_stopping(); }

INSTANTIATE_TEST_SUITE_P(
    Sampling,
    BadInputTest,
    ::testing::Values(
        Case{"TemperatureNan",
             kInvalid,
             "sampling.temperature",
             [](R& r) { Sampling(r).set_temperature(kNan); }},
        Case{"TemperatureInfinite",
             kInvalid,
             "sampling.temperature",
             [](R& r) { Sampling(r).set_temperature(kInf); }},
        Case{"TemperatureNegative",
             kInvalid,
             "sampling.temperature",
             [](R& r) { Sampling(r).set_temperature(-0.1f); }},
        Case{"TemperatureMinusZero",
             StatusCode::OK,
             "",
             [](R& r) { Sampling(r).set_temperature(-0.0f); }},
        Case{"TemperatureDenormal",
             StatusCode::OK,
             "",
             [](R& r) { Sampling(r).set_temperature(1e-42f); }},
        Case{"TemperatureHuge",
             kInvalid,
             "sampling.temperature",
             [](R& r) { Sampling(r).set_temperature(1e38f); }},
        Case{"TopPZero", kInvalid, "sampling.top_p", [](R& r) { Sampling(r).set_top_p(0); }},
        Case{"TopPNegative", kInvalid, "sampling.top_p", [](R& r) { Sampling(r).set_top_p(-1); }},
        Case{"TopPOverOne", kInvalid, "sampling.top_p", [](R& r) { Sampling(r).set_top_p(1.01f); }},
        Case{"TopPNan", kInvalid, "sampling.top_p", [](R& r) { Sampling(r).set_top_p(kNan); }},
        Case{"TopKZero", StatusCode::OK, "", [](R& r) { Sampling(r).set_top_k(0); }},
        Case{"TopKMinusOne", StatusCode::OK, "", [](R& r) { Sampling(r).set_top_k(-1); }},
        Case{"TopKNegative", kInvalid, "sampling.top_k", [](R& r) { Sampling(r).set_top_k(-2); }},
        Case{"TopKHuge", StatusCode::OK, "", [](R& r) { Sampling(r).set_top_k(INT32_MAX); }},
        Case{"MinPOverOne", kInvalid, "sampling.min_p", [](R& r) { Sampling(r).set_min_p(1.5f); }},
        Case{"MinPNan", kInvalid, "sampling.min_p", [](R& r) { Sampling(r).set_min_p(kNan); }},
        Case{"PresencePenaltyExtreme",
             kInvalid,
             "sampling.presence_penalty",
             [](R& r) { Sampling(r).set_presence_penalty(2.5f); }},
        Case{"FrequencyPenaltyNan",
             kInvalid,
             "sampling.frequency_penalty",
             [](R& r) { Sampling(r).set_frequency_penalty(kNan); }},
        Case{"RepetitionPenaltyZero",
             kInvalid,
             "sampling.repetition_penalty",
             [](R& r) { Sampling(r).set_repetition_penalty(0); }},
        Case{"RepetitionPenaltyInfinite",
             kInvalid,
             "sampling.repetition_penalty",
             [](R& r) { Sampling(r).set_repetition_penalty(kInf); }},
        Case{"NZero", kInvalid, "sampling.n", [](R& r) { Sampling(r).set_n(0); }},
        Case{"NHuge", kInvalid, "sampling.n", [](R& r) { Sampling(r).set_n(1000000); }},
        Case{"NLargest", kInvalid, "sampling.n", [](R& r) { Sampling(r).set_n(UINT32_MAX); }},
        Case{"SeedSmallest", StatusCode::OK, "", [](R& r) { Sampling(r).set_seed(0); }},
        Case{"SeedLargest", StatusCode::OK, "", [](R& r) { Sampling(r).set_seed(UINT64_MAX); }},
        Case{"LogitBiasOfAMillionIds",
             kInvalid,
             "sampling.logit_bias",
             [](R& r) {
               for (uint32_t i = 0; i < 1000000; ++i) (*Sampling(r).mutable_logit_bias())[i] = 1;
             }},
        Case{"LogitBiasOfAnUnknownId",
             kInvalid,
             "sampling.logit_bias",
             [](R& r) { (*Sampling(r).mutable_logit_bias())[2048] = 1; }},
        Case{"LogitBiasNan",
             kInvalid,
             "sampling.logit_bias",
             [](R& r) { (*Sampling(r).mutable_logit_bias())[1] = kNan; }},
        Case{"LogitBiasMinusInfinite",
             kInvalid,
             "sampling.logit_bias",
             [](R& r) { (*Sampling(r).mutable_logit_bias())[1] = -kInf; }}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Stopping,
    BadInputTest,
    ::testing::Values(
        Case{"MaxTokensZero",
             kInvalid,
             "stopping.max_tokens",
             [](R& r) { Stopping(r).set_max_tokens(0); }},
        Case{"MaxTokensLargest",
             kInvalid,
             "stopping.max_tokens",
             [](R& r) { Stopping(r).set_max_tokens(UINT32_MAX); }},
        Case{"MinTokensOverMaxTokens",
             kInvalid,
             "stopping.min_tokens",
             [](R& r) { Stopping(r).set_min_tokens(5); }},
        Case{"MinTokensLargest",
             kInvalid,
             "stopping.min_tokens",
             [](R& r) { Stopping(r).set_min_tokens(UINT32_MAX); }},
        Case{"TenThousandStopStrings",
             kInvalid,
             "stopping.stop",
             [](R& r) {
               for (int i = 0; i < 10000; ++i) Stopping(r).add_stop("x");
             }},
        Case{"EmptyStopString", kInvalid, "stopping.stop", [](R& r) { Stopping(r).add_stop(""); }},
        Case{"StopStringOfAMegabyte",
             kInvalid,
             "stopping.stop",
             [](R& r) { Stopping(r).add_stop(std::string(1 << 20, 'x')); }},
        Case{"OverlappingStopStrings",
             StatusCode::OK,
             "",
             [](R& r) {
               Stopping(r).add_stop("aa");
               Stopping(r).add_stop("aaa");
             }},
        Case{"UnknownStopId",
             kInvalid,
             "stopping.stop_token_ids",
             [](R& r) { Stopping(r).add_stop_token_ids(UINT32_MAX); }},
        Case{"TenThousandStopIds",
             kInvalid,
             "stopping.stop_token_ids",
             [](R& r) {
               for (int i = 0; i < 10000; ++i) Stopping(r).add_stop_token_ids(1);
             }}),
    CaseName);

v1::Sparse& Sparse(R& r) { return *r.mutable_sparse(); }
v1::ResponseOptions& Response(R& r) { return *r.mutable_response(); }

INSTANTIATE_TEST_SUITE_P(
    Protocol,
    BadInputTest,
    ::testing::Values(
        Case{"LogProbsOfAMillionIds",
             kInvalid,
             "response.top_log_probs",
             [](R& r) { Response(r).set_top_log_probs(1000000); }},
        Case{"PromptLogProbsOfMinusOne",
             kInvalid,
             "response.prompt_log_probs",
             [](R& r) { Response(r).set_prompt_log_probs(UINT32_MAX); }},
        Case{"UnknownModel", StatusCode::NOT_FOUND, "", [](R& r) { r.set_model("gpt"); }},
        Case{"ModelNameOfAMegabyte",
             kInvalid,
             "model",
             [](R& r) { r.set_model(std::string(1 << 20, 'm')); }},
        Case{"RequestIdOfAMegabyte",
             kInvalid,
             "request_id",
             [](R& r) { r.set_request_id(std::string(1 << 20, 'i')); }},
        Case{"RequestIdWithControlCharacters",
             kInvalid,
             "request_id",
             [](R& r) { r.set_request_id("a\nb"); }},
        Case{"CacheSaltOfAMegabyte",
             kInvalid,
             "cache_salt",
             [](R& r) { r.set_cache_salt(std::string(1 << 20, 's')); }},
        Case{"PriorityTooHigh", kInvalid, "priority", [](R& r) { r.set_priority(101); }},
        Case{"PrioritySmallest", kInvalid, "priority", [](R& r) { r.set_priority(INT32_MIN); }},
        Case{"UnknownMode",
             kInvalid,
             "sparse.mode",
             [](R& r) { Sparse(r).set_mode(static_cast<v1::AttentionMode>(77)); }},
        Case{"UnknownSelector",
             kInvalid,
             "sparse.selector",
             [](R& r) { Sparse(r).set_selector(static_cast<v1::Selector>(-1)); }},
        Case{"SelectorThatIsOff",
             kInvalid,
             "sparse.selector",
             [](R& r) { Sparse(r).set_selector(v1::SELECTOR_BOUND); }},
        Case{"BudgetZero", kInvalid, "sparse.budget", [](R& r) { Sparse(r).set_budget(0); }},
        Case{"BudgetLargest",
             kInvalid,
             "sparse.budget",
             [](R& r) { Sparse(r).set_budget(UINT32_MAX); }},
        Case{"BlocksZero", kInvalid, "sparse.blocks", [](R& r) { Sparse(r).set_blocks(0); }},
        Case{"SparseTopPNan", kInvalid, "sparse.top_p", [](R& r) { Sparse(r).set_top_p(kNan); }},
        Case{"TailOverThePrompt", kInvalid, "sparse.tail", [](R& r) { Sparse(r).set_tail(3); }},
        Case{"TailLargest", kInvalid, "sparse.tail", [](R& r) { Sparse(r).set_tail(UINT32_MAX); }}),
    CaseName);

TEST(BadProtocolTest, ARequestIdInUse) {
  v1::GenerateRequest request = IdsRequest({1}, 60000);
  request.set_request_id("twice");
  grpc::ClientContext context;
  auto first = Server().stub().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(first->Read(&message));
  EXPECT_EQ(Server().Generate(request).status.error_code(), StatusCode::ALREADY_EXISTS);
  context.TryCancel();
  while (first->Read(&message)) continue;
  first->Finish();
  ASSERT_TRUE(Server().WaitIdle());
  request.mutable_stopping()->set_max_tokens(1);
  // Free again, once the server has seen the end of the call as well.
  grpc::Status again = Server().Generate(request).status;
  for (int i = 0; i < 10000 && again.error_code() == StatusCode::ALREADY_EXISTS; ++i) {
    absl::SleepFor(absl::Milliseconds(1));
    again = Server().Generate(request).status;
  }
  EXPECT_TRUE(again.ok()) << again.error_message();
}

TEST(BadProtocolTest, TextThatIsNotUtf8) {
  v1::GenerateRequest request = IdsRequest({1}, 1);
  request.set_text("\xff\xfe");
  const grpc::Status status = Server().Generate(request).status;
  EXPECT_EQ(status.error_code(), kInvalid);
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("UTF-8"));
}

TEST(BadProtocolTest, AbortsOfAnything) {
  v1::AbortRequest request;
  v1::AbortResponse response;
  for (int i = 0; i < 10000; ++i) request.add_request_ids(absl::StrCat("nobody-", i));
  request.add_request_ids("");
  request.add_request_ids(std::string(1 << 20, 'x'));
  grpc::ClientContext context;
  EXPECT_TRUE(Server().stub().Abort(&context, request, &response).ok());
}

TEST(BadProtocolTest, DeadlinesOfEverySize) {
  for (int microseconds : {-1000000, 0, 1, 100, 1000, 5000}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(microseconds));
    const Outcome out = Server().Generate(IdsRequest({1, 2}, 50000), context);
    EXPECT_EQ(out.status.error_code(), StatusCode::DEADLINE_EXCEEDED) << microseconds;
    EXPECT_TRUE(out.finished.empty());
  }
  EXPECT_TRUE(Server().WaitIdle());
}

TEST(BadProtocolTest, RefusedRequestsAreToldWhenToComeBack) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.step_time = absl::Milliseconds(20);
  options.config.set_max_sequences(1);
  options.config.set_max_waiting_requests(1);
  TestServer server(options);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> calls;
  v1::GenerateResponse message;
  for (int i = 0; i < 2; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    calls.push_back(server.stub().Generate(contexts.back().get(), IdsRequest({1}, 10000)));
    ASSERT_TRUE(calls.back()->Read(&message));
    ASSERT_TRUE(server.WaitFor(
        [&](const Engine::Snapshot& s) { return s.running == 1 && s.waiting == i; }));
  }
  const grpc::Status refused = server.Generate(IdsRequest({1}, 1)).status;
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(refused.error_details()));
  bool retry = false, reason = false;
  for (const google::protobuf::Any& any : rich.details()) {
    google::rpc::RetryInfo info;
    google::rpc::ErrorInfo error;
    if (any.UnpackTo(&info)) retry = info.retry_delay().seconds() > 0;
    if (any.UnpackTo(&error)) reason = error.reason() == "QUEUE_FULL";
  }
  EXPECT_TRUE(retry && reason) << rich.ShortDebugString();
  for (int i = 0; i < 2; ++i) {
    contexts[i]->TryCancel();
    while (calls[i]->Read(&message)) continue;
    calls[i]->Finish();
  }
}

}  // namespace
}  // namespace asynctls::testing
