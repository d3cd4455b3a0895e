// SPDX-License-Identifier: Apache-2.0
// A whole server on a free port, with the demo's tokenizer and FakeWorker in the place of the
// model.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "asynctls/v1/generation.grpc.pb.h"
#include "engine/base/check.h"
#include "engine/base/json.h"
#include "engine/base/logging.h"
#include "engine/engine.h"
#include "grpcpp/grpcpp.h"
#include "server/config.h"
#include "server/server.h"
#include "server/startup.h"
#include "tests/testing/fake_worker.h"

namespace asynctls::testing {

inline constexpr uint32_t kDemoVocab = 2048;

// What came back from one Generate call.
struct Outcome {
  grpc::Status status;
  v1::Started started;
  std::string text;
  std::vector<uint32_t> ids;
  std::vector<float> log_probs;
  std::vector<v1::GenerateResponse> messages;
  std::vector<v1::Finished> finished;

  void Take(const v1::GenerateResponse& message) {
    messages.push_back(message);
    if (message.has_started()) started = message.started();
    if (message.has_finished()) finished.push_back(message.finished());
    text += message.delta().text();
    ids.insert(ids.end(), message.delta().token_ids().begin(), message.delta().token_ids().end());
    log_probs.insert(
        log_probs.end(), message.delta().log_probs().begin(), message.delta().log_probs().end());
  }
};

class TestServer {
 public:
  struct Options {
    FakeOptions fake;
    std::function<std::unique_ptr<Worker>()> make_worker;  // in the place of FakeWorker
    v1::ServerConfig config = DefaultConfig();
    bool open = true;     // false: as while the model loads
    v1::ModelInfo model;  // merged over what FakeWorker says of itself
  };
  static Options Defaults() {
    Options options;
    options.fake.vocab_size = kDemoVocab;
    options.config.set_model("fake");
    options.config.set_listen("127.0.0.1:0");
    options.config.set_metrics_listen("none");
    return options;
  }

  explicit TestServer(const Options& options = Defaults())
      : registry_(std::make_shared<prometheus::Registry>()), metrics_(*registry_) {
    spdlog::set_level(spdlog::level::err);  // the default logger writes to stdout
    auto tokenizer = Tokenizer::Load(std::string(ASYNCTLS_SOURCE_DIR) +
                                     "/deploy/models/demo-qwen3/tokenizer.json");
    ASYNCTLS_CHECK(tokenizer.ok());
    tokenizer_ = *std::move(tokenizer);
    std::vector<std::unique_ptr<Worker>> workers;
    workers.push_back(options.make_worker ? options.make_worker()
                                          : std::make_unique<FakeWorker>(options.fake));
    auto group = std::make_unique<WorkerGroup>(std::move(workers));
    auto init =
        group->Init(InitRequestFrom(options.config, "cpu", 2, "", {}, tokenizer_->vocab_size()));
    ASYNCTLS_CHECK(init.ok());
    init->mutable_model()->MergeFrom(options.model);
    SchedulerConfig scheduler = SchedulerConfigFrom(options.config, "cpu", *init);
    engine_ = std::make_unique<Engine>(scheduler, std::move(group), metrics_);
    auto server = Server::Start(options.config, metrics_, registry_);
    ASYNCTLS_CHECK(server.ok());
    server_ = *std::move(server);
    frontend_options_ = FrontendOptionsFrom(options.config, *init, tokenizer_->vocab_size());
    if (options.open) Open();
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->grpc_port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::GenerationService::NewStub(channel_);
  }

  // The model is there. Once, where Options.open is false.
  void Open() { server_->Open(frontend_options_, *engine_, *tokenizer_); }

  Engine& engine() { return *engine_; }
  Server& server() { return *server_; }
  Metrics& metrics() { return metrics_; }
  const Tokenizer& tokenizer() { return *tokenizer_; }
  std::shared_ptr<grpc::Channel> channel() { return channel_; }
  v1::GenerationService::Stub& stub() { return *stub_; }

  Outcome Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, context);
  }
  Outcome Generate(const v1::GenerateRequest& request, grpc::ClientContext& context) {
    auto reader = stub_->Generate(&context, request);
    Outcome out;
    v1::GenerateResponse message;
    while (reader->Read(&message)) out.Take(message);
    out.status = reader->Finish();
    return out;
  }

  // Waits until no request is in the engine and none holds a block (one that was cancelled keeps
  // its blocks until the step in flight is back); false after ten seconds.
  bool WaitIdle() {
    return WaitFor(
        [](const Engine::Snapshot& s) { return s.running + s.waiting == 0 && s.blocks_used == 0; });
  }
  template <class Predicate>
  bool WaitFor(Predicate predicate) {
    for (int i = 0; i < 10000; ++i) {
      if (predicate(engine_->snapshot())) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  Metrics metrics_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
  Frontend::Options frontend_options_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

// A greedy request for `tokens` tokens, by ids, with ids in the answer.
inline v1::GenerateRequest IdsRequest(const std::vector<uint32_t>& prompt, uint32_t tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_response()->set_token_ids(true);
  return request;
}

}  // namespace asynctls::testing
