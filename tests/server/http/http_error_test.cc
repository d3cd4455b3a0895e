// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_error.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/json.h"
#include "engine/base/logging.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

TEST(HttpErrorTest, EveryCodeHasAStatus) {
  const std::pair<absl::StatusCode, int> cases[] = {
      {absl::StatusCode::kOk, 200},
      {absl::StatusCode::kInvalidArgument, 400},
      {absl::StatusCode::kOutOfRange, 400},
      {absl::StatusCode::kFailedPrecondition, 400},
      {absl::StatusCode::kUnauthenticated, 401},
      {absl::StatusCode::kPermissionDenied, 403},
      {absl::StatusCode::kNotFound, 404},
      {absl::StatusCode::kAlreadyExists, 409},
      {absl::StatusCode::kAborted, 409},
      {absl::StatusCode::kResourceExhausted, 429},
      {absl::StatusCode::kCancelled, 499},
      {absl::StatusCode::kInternal, 500},
      {absl::StatusCode::kUnknown, 500},
      {absl::StatusCode::kDataLoss, 500},
      {absl::StatusCode::kUnimplemented, 501},
      {absl::StatusCode::kUnavailable, 503},
      {absl::StatusCode::kDeadlineExceeded, 504},
  };
  for (const auto& [code, status] : cases) EXPECT_EQ(HttpStatusOf(code), status);
}

TEST(HttpErrorTest, FieldsHaveTheNamesOfTheApi) {
  const std::pair<const char*, const char*> cases[] = {
      {"sampling.top_p", "top_p"},
      {"stopping.stop", "stop"},
      {"sparse.budget", "asynctls.budget"},
      {"response.top_log_probs", "top_logprobs"},
      {"response.prompt_log_probs", "prompt_logprobs"},
      {"token_ids.ids[3]", "prompt[3]"},
      {"chat.messages[1].role", "messages[1].role"},
      {"text", "prompt"},
      {"model", "model"},
  };
  for (const auto& [field, name] : cases) {
    const Json error = Json::parse(ErrorJson(InvalidField(field, " is bad")))["error"];
    EXPECT_EQ(error["param"], name);
    EXPECT_EQ(error["message"], absl::StrCat(name, " is bad"));
  }
}

TEST(HttpErrorTest, ShowsFieldReasonAndMessage) {
  const HttpResponse response =
      ErrorResponse(InvalidField("sampling.top_p", " 2 is outside 0 to 1"));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.body,
            R"({"error":{"code":"invalid_field","message":"top_p 2 is outside 0 to 1",)"
            R"("param":"top_p","type":"invalid_request_error"}})");
}

TEST(HttpErrorTest, SaysWhenToTryAgain) {
  const absl::Status full = WithRetry(
      WithReason(absl::ResourceExhaustedError("full"), "QUEUE_FULL"), absl::Milliseconds(1200));
  const HttpResponse response = ErrorResponse(full);
  EXPECT_EQ(response.status, 429);
  ASSERT_EQ(response.headers.size(), 1u);
  EXPECT_EQ(response.headers[0].first, "Retry-After");
  EXPECT_EQ(response.headers[0].second, "2");
  const Json error = Json::parse(response.body)["error"];
  EXPECT_EQ(error["type"], "rate_limit_error");
  EXPECT_EQ(error["code"], "queue_full");
  EXPECT_TRUE(error["param"].is_null());
}

TEST(HttpErrorTest, InternalErrorsAreNotShown) {
  spdlog::set_level(spdlog::level::off);
  const std::string body = ErrorResponse(absl::InternalError("secret")).body;
  EXPECT_EQ(body.find("secret"), std::string::npos);
  EXPECT_NE(body.find("internal error "), std::string::npos);
}

TEST(HttpErrorTest, WhatIsNotUtf8IsReplaced) {
  const std::string body = ErrorResponse(404, "there is no /\xff\"<").body;
  EXPECT_EQ(Json::parse(body)["error"]["message"], "there is no /\xef\xbf\xbd\"<");
}

}  // namespace
}  // namespace asynctls
