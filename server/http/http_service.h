// SPDX-License-Identifier: Apache-2.0
// HttpService: what the HTTP port serves, path by path: OpenAI's endpoints, vLLM's tokenize and
// detokenize, health, metrics and the status page. A thin layer over the front end.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "prometheus/collectable.h"
#include "server/frontend/frontend.h"
#include "server/frontend/health.h"
#include "server/frontend/task_pool.h"
#include "server/http/http_call.h"
#include "server/http/openai_request.h"

namespace asynctls {

class HttpService {
 public:
  // The references outlive the service; it outlives the HttpServer that calls it.
  HttpService(Frontend& frontend,
              const HealthMonitor& health,
              std::shared_ptr<prometheus::Collectable> metrics);

  // An HttpHandler.
  void Handle(HttpRequest request, std::shared_ptr<HttpCall> call);

  // Shown by GET /metrics too from now on. Any thread.
  void AddMetrics(std::shared_ptr<prometheus::Collectable> more);

 private:
  using CallPtr = std::shared_ptr<HttpCall>;
  using Endpoint = void (HttpService::*)(const HttpRequest& request, const CallPtr& call);
  struct Route {
    const char* method;  // GET is HEAD as well
    const char* path;
    Endpoint endpoint;
    bool slow;  // never on an I/O thread
  };
  static const Route kRoutes[];

  void Chat(const HttpRequest& request, const CallPtr& call);
  void Completions(const HttpRequest& request, const CallPtr& call);
  void Generate(const HttpRequest& http,
                absl::StatusOr<OpenAiRequest> request,
                const CallPtr& call);
  void Tokenize(const HttpRequest& request, const CallPtr& call);
  void Detokenize(const HttpRequest& request, const CallPtr& call);
  void Models(const HttpRequest& request, const CallPtr& call);
  void Model(const HttpRequest& request, const CallPtr& call);
  void Health(const HttpRequest& request, const CallPtr& call);
  void Version(const HttpRequest& request, const CallPtr& call);
  void Ping(const HttpRequest& request, const CallPtr& call);
  void MetricsText(const HttpRequest& request, const CallPtr& call);
  void Page(const HttpRequest& request, const CallPtr& call);
  void StatusJson(const HttpRequest& request, const CallPtr& call);

  // NOT_FOUND unless `name` is empty or the model served.
  absl::Status CheckModel(const std::string& name) const;

  Frontend& frontend_;
  const HealthMonitor& health_;
  const absl::Time started_ = absl::Now();

  std::mutex mu_;  // guards what follows, up to the pool
  std::vector<std::shared_ptr<prometheus::Collectable>> metrics_;

  TaskPool pool_{1};  // what takes longer than an I/O thread may be kept; last
};

}  // namespace asynctls
