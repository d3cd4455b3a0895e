// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_service.h"

#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "engine/base/json.h"
#include "prometheus/text_serializer.h"
#include "server/frontend/errors.h"
#include "server/frontend/request_checks.h"
#include "server/http/http_error.h"
#include "server/http/openai_format.h"
#include "server/http/openai_reply.h"
#include "server/http/status_json.h"
#include "server/http/status_page.h"

namespace asynctls {
namespace {

constexpr char kModelPath[] = "/v1/models/";
// Bodies beyond this are parsed on the pool.
constexpr size_t kInlineBody = 32 << 10;
constexpr double kMaxTimeoutSeconds = 7 * 24 * 3600;
// How long the engine keeps its copy of the requests fresh after a look.
constexpr absl::Duration kWatch = absl::Seconds(3);

std::string RandomHex() {
  std::random_device device;
  return absl::StrCat(absl::Hex(static_cast<uint64_t>(device()) << 32 | device(), absl::kZeroPad16),
                      absl::Hex(device(), absl::kZeroPad8));
}

// Of a call that is refused before its answer has a shape.
class RefusedCall final : public ResponseWriter {
 public:
  explicit RefusedCall(std::shared_ptr<HttpCall> call) : call_(std::move(call)) {}
  bool Write(v1::GenerateResponse&) override { return true; }
  void Finish(const absl::Status& status) override { call_->Respond(ErrorResponse(status)); }

 private:
  const std::shared_ptr<HttpCall> call_;
};

HttpResponse JsonResponse(std::string body, int status = 200) {
  HttpResponse response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

// Header X-Request-Timeout: seconds until the answer is no longer wanted.
absl::Status ReadDeadline(const HttpRequest& request, CallInfo& call) {
  const std::string timeout = request.Header("x-request-timeout");
  if (timeout.empty()) return absl::OkStatus();
  double seconds = 0;
  if (!absl::SimpleAtod(timeout, &seconds) || !(seconds > 0 && seconds <= kMaxTimeoutSeconds)) {
    return InvalidField("X-Request-Timeout",
                        " '",
                        timeout.substr(0, 64),
                        "' is not a number of seconds up to ",
                        kMaxTimeoutSeconds);
  }
  call.deadline = absl::Now() + absl::Seconds(seconds);
  return absl::OkStatus();
}

// The id of the header, where it can be one.
std::string HeaderId(const HttpRequest& request) {
  const std::string id = request.Header("x-request-id");
  if (id.size() > kMaxRequestIdBytes) return "";
  for (unsigned char c : id) {
    if (!absl::ascii_isprint(c)) return "";
  }
  return id;
}

bool IsJson(const HttpRequest& request) {
  const std::string type = request.Header("content-type");
  const absl::string_view media = absl::StripAsciiWhitespace(
      absl::string_view(type).substr(0, absl::string_view(type).find(';')));
  return type.empty() || absl::EqualsIgnoreCase(media, "application/json");
}

std::string ModelJson(const Frontend::Serving& serving, absl::Time created) {
  const std::string name = JsonString(serving.options.info.model().name());
  return absl::StrCat("{\"id\":",
                      name,
                      ",\"object\":\"model\",\"created\":",
                      absl::ToUnixSeconds(created),
                      ",\"owned_by\":\"asynctls\",\"root\":",
                      name,
                      ",\"parent\":null,\"max_model_len\":",
                      serving.options.limits.max_positions,
                      "}");
}

std::string HealthJson(bool ok, const std::string& reason) {
  return ok ? "{\"status\":\"ok\"}"
            : absl::StrCat("{\"status\":\"unavailable\",\"reason\":", JsonString(reason), "}");
}

}  // namespace

HttpService::HttpService(Frontend& frontend,
                         const HealthMonitor& health,
                         std::shared_ptr<prometheus::Collectable> metrics)
    : frontend_(frontend), health_(health), metrics_({std::move(metrics)}) {}

void HttpService::AddMetrics(std::shared_ptr<prometheus::Collectable> more) {
  std::lock_guard lock(mu_);
  metrics_.push_back(std::move(more));
}

// -------------------------------------------------------------------------------------- routing --

const HttpService::Route HttpService::kRoutes[] = {
    {"POST", "/v1/chat/completions", &HttpService::Chat, false},
    {"POST", "/v1/completions", &HttpService::Completions, false},
    {"POST", "/tokenize", &HttpService::Tokenize, false},
    {"POST", "/detokenize", &HttpService::Detokenize, false},
    {"GET", "/v1/models", &HttpService::Models, false},
    {"GET", kModelPath, &HttpService::Model, false},
    {"GET", "/health", &HttpService::Health, false},
    {"GET", "/health/live", &HttpService::Health, false},
    {"GET", "/health/ready", &HttpService::Health, false},
    {"GET", "/health/startup", &HttpService::Health, false},
    {"GET", "/version", &HttpService::Version, false},
    {"GET", "/ping", &HttpService::Ping, false},
    {"POST", "/ping", &HttpService::Ping, false},
    {"GET", "/metrics", &HttpService::MetricsText, true},
    {"GET", "/", &HttpService::Page, false},
    {"GET", "/status.json", &HttpService::StatusJson, true},
};

void HttpService::Handle(HttpRequest request, std::shared_ptr<HttpCall> call) {
  const Route* found = nullptr;
  std::string allowed;
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  for (const Route& route : kRoutes) {
    const bool prefix = route.path == kModelPath && request.path.size() > sizeof(kModelPath) - 1 &&
                        absl::StartsWith(request.path, kModelPath);
    if (!prefix && (request.path != route.path || route.path == kModelPath)) continue;
    absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", route.method);
    if (method == route.method) found = &route;
  }
  if (found == nullptr) {
    HttpResponse response =
        allowed.empty() ? ErrorResponse(404, absl::StrCat("there is no ", request.path))
                        : ErrorResponse(405, absl::StrCat(request.path, " takes ", allowed));
    if (!allowed.empty()) response.headers.emplace_back("Allow", allowed);
    return call->Respond(std::move(response));
  }
  if (method == "POST" && !request.body.empty() && !IsJson(request)) {
    return call->Respond(ErrorResponse(415, "Content-Type must be application/json"));
  }
  if (!request.Header("content-encoding").empty()) {
    return call->Respond(ErrorResponse(415, "Content-Encoding is not supported"));
  }
  if (!found->slow && request.body.size() <= kInlineBody) {
    return (this->*found->endpoint)(request, call);
  }
  pool_.Submit([this, endpoint = found->endpoint, request = std::move(request), call] {
    (this->*endpoint)(request, call);
  });
}

// ----------------------------------------------------------------------------------- generating --

void HttpService::Chat(const HttpRequest& request, const CallPtr& call) {
  Generate(request, ParseChatRequest(request.body), call);
}

void HttpService::Completions(const HttpRequest& request, const CallPtr& call) {
  Generate(request, ParseCompletionRequest(request.body), call);
}

void HttpService::Generate(const HttpRequest& http,
                           absl::StatusOr<OpenAiRequest> request,
                           const CallPtr& call) {
  CallInfo info;
  info.protocol = Protocol::kOpenAi;
  info.trace_id = TraceId(http.Header("traceparent"));
  absl::Status status = request.status();
  const absl::StatusOr<const Frontend::Serving*> serving = frontend_.serving();
  status.Update(serving.status());
  status.Update(ReadDeadline(http, info));
  std::string id = request.ok() ? request->prompts[0]->request_id() : "";
  if (id.empty()) id = HeaderId(http);
  if (!status.ok()) {
    RefusedCall refused(call);
    return frontend_.Refuse(id, info, status, refused);
  }
  if (id.empty()) id = absl::StrCat(request->options.chat ? "chatcmpl-" : "cmpl-", RandomHex());
  std::vector<std::shared_ptr<v1::GenerateRequest>> prompts = request->prompts;
  for (size_t i = 0; i < prompts.size(); ++i) {
    prompts[i]->set_request_id(prompts.size() == 1 ? id : absl::StrCat(id, "-", i));
  }
  const auto reply = std::make_shared<OpenAiReply>(call,
                                                   *std::move(request),
                                                   id,
                                                   (*serving)->options.info.model().name(),
                                                   absl::Now(),
                                                   (*serving)->tokenizer);
  for (uint32_t i = 0; i < prompts.size(); ++i) {
    frontend_.Generate(prompts[i], info, reply->Writer(i));
    reply->Submitted(i);
  }
  call->OnGone([weak = std::weak_ptr<OpenAiReply>(reply)] {
    if (const auto left = weak.lock()) left->Cancel();
  });
}

// ----------------------------------------------------------------------------------- tokenizing --

absl::Status HttpService::CheckModel(const std::string& name) const {
  const absl::StatusOr<const Frontend::Serving*> serving = frontend_.serving();
  if (!serving.ok()) return serving.status();
  return CheckModelName(name, (*serving)->options.info.model().name());
}

void HttpService::Tokenize(const HttpRequest& request, const CallPtr& call) {
  absl::StatusOr<TokenizeCall> parsed = ParseTokenizeRequest(request.body);
  absl::Status status = parsed.status();
  if (status.ok()) status = CheckModel(parsed->model);
  if (!status.ok()) return call->Respond(ErrorResponse(status));
  const Frontend::Serving& serving = **frontend_.serving();
  const auto ask = std::make_shared<const TokenizeCall>(*std::move(parsed));
  frontend_.Tokenize(
      ask->request, [ask, call, &serving](absl::StatusOr<v1::TokenizeResponse> response) {
        if (!response.ok()) return call->Respond(ErrorResponse(response.status()));
        std::string ids, strings;
        for (uint32_t id : response->ids()) {
          absl::StrAppend(&ids, ids.empty() ? "" : ",", id);
          if (!ask->token_strings) continue;
          absl::StrAppend(
              &strings, strings.empty() ? "" : ",", JsonString(serving.tokenizer.BytesOf(id)));
        }
        call->Respond(
            JsonResponse(absl::StrCat("{\"count\":",
                                      response->ids_size(),
                                      ",\"max_model_len\":",
                                      serving.options.limits.max_positions,
                                      ",\"tokens\":[",
                                      ids,
                                      "],\"token_strs\":",
                                      ask->token_strings ? absl::StrCat("[", strings, "]") : "null",
                                      "}")));
      });
}

void HttpService::Detokenize(const HttpRequest& request, const CallPtr& call) {
  absl::StatusOr<DetokenizeCall> parsed = ParseDetokenizeRequest(request.body);
  absl::Status status = parsed.status();
  if (status.ok()) status = CheckModel(parsed->model);
  if (!status.ok()) return call->Respond(ErrorResponse(status));
  const auto ask = std::make_shared<const DetokenizeCall>(*std::move(parsed));
  frontend_.Detokenize(ask->request, [ask, call](absl::StatusOr<v1::DetokenizeResponse> response) {
    if (!response.ok()) return call->Respond(ErrorResponse(response.status()));
    call->Respond(JsonResponse(absl::StrCat("{\"prompt\":", JsonString(response->text()), "}")));
  });
}

// -------------------------------------------------------------------------------- the rest: GET --

void HttpService::Models(const HttpRequest&, const CallPtr& call) {
  const auto serving = frontend_.serving();
  if (!serving.ok()) return call->Respond(ErrorResponse(serving.status()));
  call->Respond(JsonResponse(
      absl::StrCat("{\"object\":\"list\",\"data\":[", ModelJson(**serving, started_), "]}")));
}

void HttpService::Model(const HttpRequest& request, const CallPtr& call) {
  const absl::Status status = CheckModel(request.path.substr(sizeof(kModelPath) - 1));
  if (!status.ok()) return call->Respond(ErrorResponse(status));
  call->Respond(JsonResponse(ModelJson(**frontend_.serving(), started_)));
}

void HttpService::Health(const HttpRequest& request, const CallPtr& call) {
  const asynctls::Health health = health_.health();
  bool ok = health.ready;
  if (request.path == "/health/live") ok = health.live;
  if (request.path == "/health/startup") ok = health.started;
  call->Respond(JsonResponse(HealthJson(ok, health.reason), ok ? 200 : 503));
}

void HttpService::Version(const HttpRequest&, const CallPtr& call) {
  call->Respond(JsonResponse(absl::StrCat("{\"version\":", JsonString(ServerVersion()), "}")));
}

void HttpService::Ping(const HttpRequest&, const CallPtr& call) {
  call->Respond(JsonResponse("{}"));
}

void HttpService::MetricsText(const HttpRequest&, const CallPtr& call) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  std::vector<prometheus::MetricFamily> families;
  {
    std::lock_guard lock(mu_);
    for (const auto& metrics : metrics_) {
      for (prometheus::MetricFamily& family : metrics->Collect()) {
        families.push_back(std::move(family));
      }
    }
  }
  response.body = prometheus::TextSerializer().Serialize(families);
  call->Respond(std::move(response));
}

void HttpService::Page(const HttpRequest&, const CallPtr& call) {
  const std::string nonce = RandomHex();
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.headers = {
      {"Cache-Control", "no-store"},
      {"Referrer-Policy", "no-referrer"},
      {"Content-Security-Policy",
       absl::StrCat("default-src 'none'; script-src 'nonce-",
                    nonce,
                    "'; style-src 'nonce-",
                    nonce,
                    "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                    "frame-ancestors 'none'")}};
  response.body = absl::StrReplaceAll(StatusPage(), {{"{{NONCE}}", nonce}});
  call->Respond(std::move(response));
}

void HttpService::StatusJson(const HttpRequest&, const CallPtr& call) {
  const auto serving = frontend_.serving();
  if (serving.ok()) (*serving)->engine.Watch(kWatch);
  HttpResponse response = JsonResponse(StatusJsonText(frontend_, health_.health(), absl::Now()));
  response.headers = {{"Cache-Control", "no-store"}};
  call->Respond(std::move(response));
}

}  // namespace asynctls
