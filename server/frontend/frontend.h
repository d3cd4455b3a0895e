// SPDX-License-Identifier: Apache-2.0
// Frontend: what every protocol calls. Checks and admits requests; each accepted one becomes a
// Generation. Callers' threads are kept short: tokenizing runs on a pool of two threads.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.pb.h"
#include "engine/engine.h"
#include "engine/metrics/metrics.h"
#include "engine/text/tokenizer.h"
#include "server/frontend/call_info.h"
#include "server/frontend/generation.h"
#include "server/frontend/open_calls.h"
#include "server/frontend/overload.h"
#include "server/frontend/rate_meter.h"
#include "server/frontend/request_checks.h"
#include "server/frontend/response_writer.h"
#include "server/frontend/task_pool.h"

namespace asynctls {

// The version this was built as.
std::string ServerVersion();

class Frontend {
 public:
  struct Options {
    ServingLimits limits;
    v1::GetModelInfoResponse info;  // answered as it is
    uint32_t max_running_requests = 0;
    uint32_t max_waiting_requests = 0;
    uint64_t max_waiting_prompt_tokens = 0;
  };
  // What is served once the model is loaded. The references outlive the front end.
  struct Serving {
    Options options;
    Engine& engine;
    const Tokenizer& tokenizer;
  };

  // Until Open every call is answered UNAVAILABLE. `metrics` outlives the front end, which outlives
  // the protocols' servers; by the time of destruction no call may be left.
  explicit Frontend(Metrics& metrics);

  // Once: the model is there.
  void Open(Options options, Engine& engine, const Tokenizer& tokenizer);
  // From now on Generate answers UNAVAILABLE. Calls that have begun go on.
  void StopAdmitting() { admitting_ = false; }
  // Until the clients of all generations have been told the end and the protocols are through with
  // their calls, or `limit` has passed.
  void WaitForCalls(absl::Duration limit) const { open_calls_.WaitUntilNone(limit); }

  // UNAVAILABLE while the model is loading.
  absl::StatusOr<const Serving*> serving() const;

  // Any thread; short. The answer goes to `writer`, whose Finish may be called before this returns.
  void Generate(std::shared_ptr<const v1::GenerateRequest> request,
                const CallInfo& call,
                const std::shared_ptr<ResponseWriter>& writer);
  // For a protocol whose own checks refuse a call: counts it, logs it, and finishes `writer`.
  void Refuse(const std::string& id,
              const CallInfo& call,
              const absl::Status& why,
              ResponseWriter& writer);
  // Ends requests by id; unknown ids are ignored. Any thread.
  void Abort(const std::string& id);

  // Run on the pool, then `done`; at once where they are refused. `request` outlives that.
  template <class Response>
  using Done = absl::AnyInvocable<void(absl::StatusOr<Response>)>;
  void Tokenize(const v1::TokenizeRequest& request, Done<v1::TokenizeResponse> done);
  void Detokenize(const v1::DetokenizeRequest& request, Done<v1::DetokenizeResponse> done);

  absl::StatusOr<v1::GetModelInfoResponse> ModelInfo() const;
  absl::StatusOr<v1::GetLoadResponse> Load() const;
  // For the rates in Load and the overload gauge; to be called every second or so.
  void SampleRates(absl::Time now);

 private:
  using RequestPtr = std::shared_ptr<const v1::GenerateRequest>;

  // Room in the encode pool's queue. Every OK is followed by one ReleaseEncode.
  absl::Status ReserveEncode(const Serving& serving, int64_t bytes, int32_t priority);
  void ReleaseEncode(int64_t bytes);
  // Requires: mu_ held.
  QueueLoad Queue(const Serving& serving, const Engine::Snapshot& engine) const;

  // Everything that needs no token ids, then hands over to the encode pool.
  absl::Status Admit(const RequestPtr& request,
                     const std::string& id,
                     const CallInfo& call,
                     const std::shared_ptr<ResponseWriter>& writer);
  // A generation under `id`, for as long as its call lasts. Errors: ALREADY_EXISTS.
  absl::StatusOr<std::shared_ptr<Generation>> OpenGeneration(
      const v1::GenerateRequest& request,
      const std::string& id,
      const CallInfo& call,
      std::vector<std::string> engine_ids,
      const std::shared_ptr<ResponseWriter>& writer);
  // On the encode pool. OK: the generation has been started.
  absl::Status Submit(const Serving& serving,
                      const v1::GenerateRequest& request,
                      const std::string& id,
                      std::vector<Request> sequences,
                      const std::shared_ptr<Generation>& generation);

  Metrics& metrics_;
  std::unique_ptr<const Serving> serving_;  // written once, before open_ is set
  std::atomic<bool> open_{false};
  std::atomic<bool> admitting_{true};
  std::atomic<uint64_t> next_id_{1};
  OpenCalls open_calls_;  // generations

  mutable std::mutex mu_;  // guards what follows, up to the pools
  // Generations that have not ended, by their public id.
  absl::flat_hash_map<std::string, std::weak_ptr<Generation>> live_;
  int64_t encoding_ = 0;  // calls in the encode pool, and their bytes
  int64_t encoding_bytes_ = 0;
  RateMeter generation_tokens_;

  TaskPool stream_pool_{1};  // Generation's turns
  TaskPool encode_pool_{2};
};

}  // namespace asynctls
