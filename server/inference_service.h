// SPDX-License-Identifier: Apache-2.0
// asynctls.v1.GenerationService on gRPC's callback API. Checks and admits calls; each accepted
// Generate becomes a TokenStream. Reactions are short: tokenizing runs on a pool of two threads.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "asynctls/v1/generation.grpc.pb.h"
#include "engine/engine.h"
#include "engine/metrics/metrics.h"
#include "engine/text/tokenizer.h"
#include "server/request_checks.h"
#include "server/task_pool.h"
#include "server/token_stream.h"

namespace asynctls {

// The version this was built as.
std::string ServerVersion();

class InferenceService final : public v1::GenerationService::CallbackService {
 public:
  struct Options {
    ServingLimits limits;
    v1::GetModelInfoResponse info;  // answered as it is
    uint32_t max_waiting_requests = 0;
    uint64_t max_waiting_prompt_tokens = 0;
  };

  // The references outlive the service; the gRPC server that serves it does not, and by the time
  // of destruction no call may be left.
  InferenceService(Options options, Engine& engine, const Tokenizer& tokenizer, Metrics& metrics);

  // From now on Generate answers UNAVAILABLE. Calls that have begun go on.
  void StopAdmitting() { admitting_ = false; }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;

 private:
  // Room in the encode pool's queue. Every OK is followed by one ReleaseEncode.
  absl::Status ReserveEncode(int64_t bytes);
  void ReleaseEncode(int64_t bytes);

  // A stream under `id`, for as long as its call lasts. Errors: ALREADY_EXISTS.
  absl::StatusOr<std::shared_ptr<TokenStream>> OpenStream(const std::string& id,
                                                          const std::string& engine_id,
                                                          const v1::GenerateRequest& request);
  // Everything that needs no token ids, then hands over to the encode pool.
  absl::StatusOr<std::shared_ptr<TokenStream>> Admit(const grpc::CallbackServerContext& context,
                                                     const v1::GenerateRequest& request,
                                                     const std::string& id);
  // On the encode pool. OK: the stream has been started.
  absl::Status Submit(const v1::GenerateRequest& request,
                      const std::string& id,
                      Request resolved,
                      const std::shared_ptr<TokenStream>& stream);
  absl::StatusOr<std::vector<uint32_t>> PromptIds(const v1::GenerateRequest& request) const;
  absl::Status TokenizeNow(const v1::TokenizeRequest& request, v1::TokenizeResponse& out) const;

  // Constant after construction.
  const Options options_;
  Engine& engine_;
  const Tokenizer& tokenizer_;
  Metrics& metrics_;

  std::atomic<bool> admitting_{true};
  std::atomic<uint64_t> next_id_{1};

  std::mutex mu_;  // guards what follows, up to the pools
  // Calls of Generate that have not ended, by their public id.
  absl::flat_hash_map<std::string, std::weak_ptr<TokenStream>> live_;
  int64_t encoding_ = 0;  // calls in the encode pool, and their bytes
  int64_t encoding_bytes_ = 0;

  TaskPool stream_pool_{1};  // TokenStream's turns
  TaskPool encode_pool_{2};
};

}  // namespace asynctls
