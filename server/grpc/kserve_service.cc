// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/frontend/errors.h"
#include "server/grpc/grpc_call.h"
#include "server/grpc/kserve_reply.h"
#include "server/grpc/kserve_request.h"
#include "server/grpc/kserve_stream.h"

namespace asynctls {
namespace {

constexpr char kPlatform[] = "asynctls";

// One ModelInfer call. Held by gRPC until OnDone and by its generation until Finish.
class InferCall final : public grpc::ServerUnaryReactor, public ResponseWriter {
 public:
  InferCall(const InferRequest& request, grpc::ByteBuffer* bytes)
      : reply_(request), bytes_(bytes) {}
  void Hold(std::shared_ptr<InferCall> self) { self_ = std::move(self); }

  bool Write(v1::GenerateResponse& response) override {
    reply_.Take(response, response_);
    return true;
  }
  void Finish(const absl::Status& status) override {
    if (status.ok()) SerializeMessage(response_, *bytes_);
    grpc::ServerUnaryReactor::Finish(ToGrpcStatus(ToInferError(status)));
  }
  void OnCancel() override {
    if (generation() != nullptr) generation()->ClientGone();
  }
  void OnDone() override { std::shared_ptr<InferCall> last = std::move(self_); }

 private:
  InferReply reply_;
  inference::ModelInferResponse response_;
  grpc::ByteBuffer* const bytes_;
  std::shared_ptr<InferCall> self_;
};

struct Tensor {
  const char* name;
  const char* datatype;
  inference::DataType type;
  bool optional;
};
constexpr Tensor kInputs[] = {
    {"text_input", "BYTES", inference::TYPE_STRING, false},
    {"stream", "BOOL", inference::TYPE_BOOL, true},
    {"sampling_parameters", "BYTES", inference::TYPE_STRING, true},
    {"exclude_input_in_output", "BOOL", inference::TYPE_BOOL, true},
    {"return_finish_reason", "BOOL", inference::TYPE_BOOL, true},
    {"return_cumulative_logprob", "BOOL", inference::TYPE_BOOL, true},
    {"return_num_input_tokens", "BOOL", inference::TYPE_BOOL, true},
    {"return_num_output_tokens", "BOOL", inference::TYPE_BOOL, true},
};
constexpr Tensor kOutputs[] = {
    {"text_output", "BYTES", inference::TYPE_STRING, false},
    {"finish_reason", "BYTES", inference::TYPE_STRING, true},
    {"cumulative_logprob", "FP32", inference::TYPE_FP32, true},
    {"num_input_tokens", "UINT32", inference::TYPE_UINT32, true},
    {"num_output_tokens", "UINT32", inference::TYPE_UINT32, true},
};

inference::ModelMetadataResponse Metadata(const std::string& name) {
  inference::ModelMetadataResponse out;
  out.set_name(name);
  out.add_versions(kModelVersion);
  out.set_platform(kPlatform);
  const auto add = [](const Tensor& tensor, auto* list) {
    auto& added = *list->Add();
    added.set_name(tensor.name);
    added.set_datatype(tensor.datatype);
    added.add_shape(-1);
  };
  for (const Tensor& tensor : kInputs) add(tensor, out.mutable_inputs());
  for (const Tensor& tensor : kOutputs) add(tensor, out.mutable_outputs());
  return out;
}

inference::ModelConfigResponse Config(const std::string& name) {
  inference::ModelConfigResponse out;
  inference::ModelConfig& config = *out.mutable_config();
  config.set_name(name);
  config.set_platform(kPlatform);
  config.set_backend(kPlatform);
  config.mutable_model_transaction_policy()->set_decoupled(true);
  for (const Tensor& tensor : kInputs) {
    inference::ModelInput& input = *config.add_input();
    input.set_name(tensor.name);
    input.set_data_type(tensor.type);
    input.add_dims(1);
    input.set_optional(tensor.optional);
  }
  for (const Tensor& tensor : kOutputs) {
    inference::ModelOutput& output = *config.add_output();
    output.set_name(tensor.name);
    output.set_data_type(tensor.type);
    output.add_dims(-1);
  }
  return out;
}

}  // namespace

absl::Status KserveService::CheckModel(const std::string& name, const std::string& version) const {
  const absl::StatusOr<v1::GetModelInfoResponse> info = frontend_.ModelInfo();
  if (!info.ok()) return info.status();
  if (name == info->model().name() && (version.empty() || version == kModelVersion)) {
    return absl::OkStatus();
  }
  return WithReason(absl::NotFoundError(absl::StrCat("model ",
                                                     Quoted(name),
                                                     " version ",
                                                     Quoted(version),
                                                     " is not served here; '",
                                                     info->model().name(),
                                                     "' version '",
                                                     kModelVersion,
                                                     "' is")),
                    "MODEL_NOT_FOUND");
}

grpc::ServerUnaryReactor* KserveService::ServerLive(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return UnaryCall<inference::ServerLiveRequest, inference::ServerLiveResponse>(
      context, request, response, [this](const inference::ServerLiveRequest&, auto done) {
        inference::ServerLiveResponse out;
        out.set_live(health_.health().live);
        done(std::move(out));
      });
}

grpc::ServerUnaryReactor* KserveService::ServerReady(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return UnaryCall<inference::ServerReadyRequest, inference::ServerReadyResponse>(
      context, request, response, [this](const inference::ServerReadyRequest&, auto done) {
        inference::ServerReadyResponse out;
        out.set_ready(health_.health().ready);
        done(std::move(out));
      });
}

grpc::ServerUnaryReactor* KserveService::ModelReady(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return UnaryCall<inference::ModelReadyRequest, inference::ModelReadyResponse>(
      context, request, response, [this](const inference::ModelReadyRequest& message, auto done) {
        inference::ModelReadyResponse out;
        out.set_ready(health_.health().ready && CheckModel(message.name(), message.version()).ok());
        done(std::move(out));
      });
}

grpc::ServerUnaryReactor* KserveService::ServerMetadata(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return UnaryCall<inference::ServerMetadataRequest, inference::ServerMetadataResponse>(
      context, request, response, [](const inference::ServerMetadataRequest&, auto done) {
        inference::ServerMetadataResponse out;
        out.set_name(kPlatform);
        out.set_version(ServerVersion());
        for (const char* extension : {"model_configuration", "model_repository", "parameters"}) {
          out.add_extensions(extension);
        }
        done(std::move(out));
      });
}

grpc::ServerUnaryReactor* KserveService::ModelMetadata(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return UnaryCall<inference::ModelMetadataRequest, inference::ModelMetadataResponse>(
      context,
      request,
      response,
      [this](const inference::ModelMetadataRequest& message, auto done) {
        const absl::Status status = CheckModel(message.name(), message.version());
        if (!status.ok()) return done(status);
        done(Metadata(message.name()));
      });
}

grpc::ServerUnaryReactor* KserveService::ModelConfig(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return UnaryCall<inference::ModelConfigRequest, inference::ModelConfigResponse>(
      context, request, response, [this](const inference::ModelConfigRequest& message, auto done) {
        const absl::Status status = CheckModel(message.name(), message.version());
        if (!status.ok()) return done(status);
        done(Config(message.name()));
      });
}

grpc::ServerUnaryReactor* KserveService::RepositoryIndex(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return UnaryCall<inference::RepositoryIndexRequest, inference::RepositoryIndexResponse>(
      context,
      request,
      response,
      [this](const inference::RepositoryIndexRequest& message, auto done) {
        inference::RepositoryIndexResponse out;
        const absl::StatusOr<v1::GetModelInfoResponse> info = frontend_.ModelInfo();
        const Health health = health_.health();
        if (info.ok() && (health.ready || !message.ready())) {
          inference::RepositoryIndexResponse::ModelIndex& model = *out.add_models();
          model.set_name(info->model().name());
          model.set_version(kModelVersion);
          model.set_state(health.ready ? "READY" : "UNAVAILABLE");
          model.set_reason(health.reason);
        }
        done(std::move(out));
      });
}

grpc::ServerUnaryReactor* KserveService::ModelInfer(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* bytes,
                                                    grpc::ByteBuffer* response) {
  CallInfo info = CallInfoFrom(*context, Protocol::kKserve);
  inference::ModelInferRequest request;
  const absl::Status parsed = ParseMessage(*bytes, request);
  absl::StatusOr<InferRequest> infer = parsed.ok() ? FromInferRequest(request) : parsed;
  if (infer.ok() && infer->options.stream) {
    infer = InvalidField("stream", " true needs ModelStreamInfer");
  }
  const auto call = std::make_shared<InferCall>(infer.ok() ? *infer : InferRequest(), response);
  call->Hold(call);
  if (infer.ok()) {
    info.deadline = std::min(info.deadline, absl::Now() + infer->timeout);
    frontend_.Generate(
        std::make_shared<const v1::GenerateRequest>(std::move(infer->request)), info, call);
  } else {
    frontend_.Refuse("", info, infer.status(), *call);
  }
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KserveService::ModelStreamInfer(
    grpc::CallbackServerContext* context) {
  const auto header = context->client_metadata().find("triton_grpc_error");
  const bool status_errors =
      header != context->client_metadata().end() &&
      absl::EqualsIgnoreCase(absl::string_view(header->second.data(), header->second.size()),
                             "true");
  return InferStream::Start(frontend_, CallInfoFrom(*context, Protocol::kKserve), status_errors);
}

}  // namespace asynctls
