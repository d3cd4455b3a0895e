// SPDX-License-Identifier: Apache-2.0
// What a flood of malformed requests is made of: a valid request of each gRPC protocol to spoil,
// and a call that sends bytes and takes whatever comes.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "asynctls/v1/generation.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/client_callback.h"
#include "inference/grpc_service.pb.h"
#include "tests/testing/malformed.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"

namespace asynctls::testing {

// Sends one message and reads until the call ends. Deletes itself after `done`.
class FloodCall final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  using Done = std::function<void(grpc::StatusCode)>;  // on a thread of gRPC

  // `answers`: how many messages it takes before it cancels; 0 = all.
  static void Start(grpc::GenericStub& stub,
                    const std::string& method,
                    const std::string& bytes,
                    absl::Duration deadline,
                    int answers,
                    Done done) {
    auto* call = new FloodCall(bytes, answers, std::move(done));
    if (deadline != absl::InfiniteDuration()) {
      call->context_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    }
    stub.PrepareBidiStreamingCall(&call->context_, method, grpc::StubOptions(), call);
    call->StartWriteLast(&call->request_, grpc::WriteOptions());
    call->StartRead(&call->response_);
    call->StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (--answers_ == 0) context_.TryCancel();
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    done_(status.error_code());
    delete this;
  }

 private:
  FloodCall(const std::string& bytes, int answers, Done done)
      : done_(std::move(done)), answers_(answers) {
    grpc::Slice slice(bytes);
    request_ = grpc::ByteBuffer(&slice, 1);
  }

  const Done done_;
  int answers_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, response_;
};

inline constexpr char kNativeMethod[] = "/asynctls.v1.GenerationService/Generate";
inline constexpr char kVllmMethod[] = "/vllm.grpc.engine.VllmEngine/Generate";
inline constexpr char kKserveMethod[] = "/inference.GRPCInferenceService/ModelInfer";

// Three tokens each.
inline v1::GenerateRequest ValidNative() {
  v1::GenerateRequest valid;
  for (uint32_t id : {1, 2, 3}) valid.mutable_token_ids()->add_ids(id);
  valid.mutable_sampling()->set_temperature(0);
  valid.mutable_sampling()->set_top_p(0.9f);
  valid.mutable_stopping()->set_max_tokens(3);
  valid.mutable_stopping()->add_stop("end");
  valid.mutable_response()->set_token_ids(true);
  return valid;
}
inline vllm::grpc::engine::GenerateRequest ValidVllm() {
  vllm::grpc::engine::GenerateRequest valid;
  for (uint32_t id : {1, 2, 3}) valid.mutable_tokenized()->add_input_ids(id);
  valid.mutable_sampling_params()->set_max_tokens(3);
  valid.mutable_sampling_params()->set_temperature(0);
  valid.mutable_sampling_params()->add_stop("end");
  return valid;
}
inline inference::ModelInferRequest ValidKserve() {
  inference::ModelInferRequest valid;
  valid.set_model_name("fake");
  valid.set_id("7");
  auto& text = *valid.add_inputs();
  text.set_name("text_input");
  text.set_datatype("BYTES");
  text.add_shape(1);
  text.mutable_contents()->add_bytes_contents("once");
  auto& stop = *valid.add_inputs();
  stop.set_name("stop");
  stop.set_datatype("BYTES");
  stop.add_shape(1);
  stop.mutable_contents()->add_bytes_contents("end");
  (*valid.mutable_parameters())["max_tokens"].set_int64_param(3);
  (*valid.mutable_parameters())["sampling_parameters"].set_string_param("{\"top_p\": 0.9}");
  return valid;
}

// The i-th spoiled copy of `valid`: every second one has broken bytes, the others random values.
template <class Request>
std::string Spoiled(const Request& valid, int i, Rng& rng) {
  if (i % 2 == 0) return Mutate(valid.SerializeAsString(), rng);
  Request request = valid;
  FillRandom(request, rng);
  return request.SerializeAsString();
}

}  // namespace asynctls::testing
