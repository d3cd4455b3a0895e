// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_error.h"

#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/logging.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

constexpr std::pair<absl::string_view, absl::string_view> kFields[] = {
    {"response.top_log_probs", "top_logprobs"},
    {"response.prompt_log_probs", "prompt_logprobs"},
    {"chat.messages", "messages"},
    {"token_ids.ids", "prompt"},
    {"sampling.", ""},
    {"stopping.", ""},
    {"sparse.", "asynctls."},
};
// Apart: the word is part of others.
constexpr std::pair<absl::string_view, absl::string_view> kText[] = {{"text", "prompt"}};

const char* TypeOf(int status) {
  switch (status) {
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    case 504:
      return "timeout_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string ErrorObject(int status,
                        const std::string& message,
                        const std::string& param,
                        const std::string& code) {
  Json error = {{"message", message}, {"type", TypeOf(status)}};
  error["param"] = param.empty() ? Json() : Json(param);
  error["code"] = code.empty() ? Json() : Json(code);
  return Json{{"error", std::move(error)}}.dump(
      -1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return kClientClosedRequest;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorJson(const absl::Status& in) {
  const absl::Status status =
      RenameFields(in, ErrorField(in) == "text" ? FieldNames(kText) : FieldNames(kFields));
  const int code = HttpStatusOf(status.code());
  if (code == 500) {
    const std::string id = absl::StrCat(absl::Hex(std::random_device{}(), absl::kZeroPad8));
    spdlog::error("internal_error id={} {}", id, status.ToString());
    return ErrorObject(code, absl::StrCat("internal error ", id), "", "internal_error");
  }
  return ErrorObject(code,
                     std::string(status.message()),
                     ErrorField(status),
                     absl::AsciiStrToLower(ErrorReason(status)));
}

HttpResponse ErrorResponse(const absl::Status& status) {
  HttpResponse out;
  out.status = HttpStatusOf(status.code());
  out.body = ErrorJson(status);
  const absl::Duration retry = RetryAfter(status);
  if (retry > absl::ZeroDuration()) {
    const int64_t seconds = absl::ToInt64Seconds(absl::Ceil(retry, absl::Seconds(1)));
    out.headers.emplace_back("Retry-After", absl::StrCat(seconds));
  }
  return out;
}

HttpResponse ErrorResponse(int status, const std::string& message) {
  HttpResponse out;
  out.status = status;
  out.body = ErrorObject(status, message, "", "");
  return out;
}

}  // namespace asynctls
