// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/vllm_service.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/json.h"
#include "server/grpc/grpc_call.h"
#include "server/grpc/vllm_reply.h"
#include "server/grpc/vllm_request.h"

namespace asynctls {
namespace {

namespace vllm_pb = ::vllm::grpc::engine;

// The one server type that gateways know for this protocol.
constexpr char kServerType[] = "vllm-grpc";
constexpr size_t kTokenizerChunkBytes = 64 << 10;

class GenerateCall final : public StreamingCall<vllm_pb::GenerateResponse> {
 public:
  GenerateCall(const v1::GenerateRequest& request, bool stream) : reply_(request, stream) {}

 protected:
  bool Convert(v1::GenerateResponse& response, vllm_pb::GenerateResponse& out) override {
    return reply_.Take(response, out);
  }
  absl::Status Renamed(const absl::Status& status) const override { return ToVllmError(status); }

 private:
  VllmReply reply_;
};

// Writes an archive, which outlives the call, in pieces.
class TokenizerCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit TokenizerCall(const absl::StatusOr<const TokenizerArchive::Content*>& content) {
    if (!content.ok()) {
      Finish(ToGrpcStatus(content.status()));
      return;
    }
    content_ = *content;
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client has gone"));
    } else if (at_ == content_->zip.size()) {
      Finish(grpc::Status::OK);
    } else {
      Next();
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    const size_t size = std::min(kTokenizerChunkBytes, content_->zip.size() - at_);
    chunk_.set_data(content_->zip.substr(at_, size));
    at_ += size;
    if (at_ == content_->zip.size()) chunk_.set_sha256(content_->sha256);
    SerializeMessage(chunk_, bytes_);
    StartWrite(&bytes_);
  }

  const TokenizerArchive::Content* content_ = nullptr;
  size_t at_ = 0;
  smg::grpc::common::GetTokenizerChunk chunk_;
  grpc::ByteBuffer bytes_;  // the write in flight
};

class RefusedStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedStream(const absl::Status& why) { Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

int32_t ToInt32(uint64_t value) {
  return static_cast<int32_t>(std::min<uint64_t>(value, INT32_MAX));
}

// Without the digits that only a float's conversion to double adds.
Json ShortNumber(float value) {
  double number = value;
  return absl::SimpleAtod(absl::StrCat(value), &number) ? number : value;
}

// What generation_config.json says of sampling, as far as the request has it too.
std::string SamplingDefaults(const v1::ModelInfo& model) {
  Json json = Json::object();
  const bool greedy = model.has_do_sample() && !model.do_sample();
  if (greedy) json["temperature"] = 0;
  if (!greedy && model.has_temperature()) json["temperature"] = ShortNumber(model.temperature());
  if (model.has_top_p()) json["top_p"] = ShortNumber(model.top_p());
  if (model.has_top_k()) json["top_k"] = model.top_k();
  return json.empty() ? "" : json.dump();
}

// config.json's model_type of the architectures that are served.
std::string ModelType(const std::string& architecture) {
  return architecture == "Qwen3ForCausalLM" ? "qwen3" : architecture;
}

}  // namespace

VllmService::VllmService(Frontend& frontend, const HealthMonitor& health, std::string model_dir)
    : frontend_(frontend),
      health_(health),
      model_dir_(std::move(model_dir)),
      started_(absl::Now()),
      archive_(model_dir_) {}

grpc::ServerWriteReactor<grpc::ByteBuffer>* VllmService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  received_micros_ = absl::ToUnixMicros(absl::Now());
  const CallInfo info = CallInfoFrom(*context, Protocol::kVllm);
  vllm_pb::GenerateRequest request;
  const absl::Status parsed = ParseMessage(*bytes, request);
  absl::StatusOr<v1::GenerateRequest> native = parsed.ok() ? FromVllmRequest(request) : parsed;
  const auto call = std::make_shared<GenerateCall>(
      native.ok() ? *native : v1::GenerateRequest::default_instance(), request.stream());
  call->Hold(call);
  if (native.ok()) {
    frontend_.Generate(std::make_shared<const v1::GenerateRequest>(*std::move(native)), info, call);
  } else {
    frontend_.Refuse(parsed.ok() ? request.request_id() : "", info, native.status(), *call);
  }
  return call.get();
}

grpc::ServerUnaryReactor* VllmService::Embed(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) {
  return UnaryCall<vllm_pb::EmbedRequest, vllm_pb::EmbedResponse>(
      context, request, response, [](const vllm_pb::EmbedRequest&, auto done) {
        done(absl::UnimplementedError("Embed: this server generates text only"));
      });
}

grpc::ServerUnaryReactor* VllmService::HealthCheck(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  return UnaryCall<vllm_pb::HealthCheckRequest, vllm_pb::HealthCheckResponse>(
      context, request, response, [this](const vllm_pb::HealthCheckRequest&, auto done) {
        const Health health = health_.health();
        vllm_pb::HealthCheckResponse out;
        out.set_healthy(health.ready);
        out.set_message(health.ready ? "ready" : health.reason);
        done(std::move(out));
      });
}

grpc::ServerUnaryReactor* VllmService::Abort(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) {
  return UnaryCall<vllm_pb::AbortRequest, vllm_pb::AbortResponse>(
      context, request, response, [this](const vllm_pb::AbortRequest& message, auto done) {
        for (const std::string& id : message.request_ids()) frontend_.Abort(id);
        done(vllm_pb::AbortResponse());
      });
}

grpc::ServerUnaryReactor* VllmService::GetModelInfo(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return UnaryCall<vllm_pb::GetModelInfoRequest, vllm_pb::GetModelInfoResponse>(
      context, request, response, [this](const vllm_pb::GetModelInfoRequest&, auto done) {
        done(ModelInfo());
      });
}

grpc::ServerUnaryReactor* VllmService::GetServerInfo(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return UnaryCall<vllm_pb::GetServerInfoRequest, vllm_pb::GetServerInfoResponse>(
      context, request, response, [this](const vllm_pb::GetServerInfoRequest&, auto done) {
        done(ServerInfo());
      });
}

grpc::ServerUnaryReactor* VllmService::GetLoads(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return UnaryCall<vllm_pb::GetLoadsRequest, vllm_pb::GetLoadsResponse>(
      context, request, response, [this](const vllm_pb::GetLoadsRequest& message, auto done) {
        done(Loads(message));
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* VllmService::GetTokenizer(grpc::CallbackServerContext*,
                                                                      const grpc::ByteBuffer*) {
  return new TokenizerCall(archive_.Get());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* VllmService::SubscribeKvEvents(
    grpc::CallbackServerContext*, const grpc::ByteBuffer*) {
  return new RefusedStream(
      absl::UnimplementedError("SubscribeKvEvents: this server publishes no KV cache events"));
}

absl::StatusOr<vllm_pb::GetModelInfoResponse> VllmService::ModelInfo() const {
  const absl::StatusOr<v1::GetModelInfoResponse> info = frontend_.ModelInfo();
  if (!info.ok()) return info.status();
  const v1::ModelInfo& model = info->model();
  vllm_pb::GetModelInfoResponse out;
  out.set_model_path(model_dir_);
  out.set_tokenizer_path(model_dir_);
  out.set_is_generation(true);
  out.set_max_context_length(info->max_prompt_tokens() + 1);
  out.set_max_req_input_len(ToInt32(info->max_prompt_tokens()));
  out.set_vocab_size(model.vocab_size());
  out.set_served_model_name(model.name());
  out.set_model_type(ModelType(model.architecture()));
  out.add_architectures(model.architecture());
  for (uint32_t id : model.eos_token_ids()) out.add_eos_token_ids(ToInt32(id));
  out.set_default_sampling_params_json(SamplingDefaults(model));
  return out;
}

absl::StatusOr<vllm_pb::GetServerInfoResponse> VllmService::ServerInfo() const {
  const absl::StatusOr<v1::GetModelInfoResponse> info = frontend_.ModelInfo();
  const absl::StatusOr<v1::GetLoadResponse> load = frontend_.Load();
  if (!info.ok()) return info.status();
  if (!load.ok()) return load.status();
  vllm_pb::GetServerInfoResponse out;
  out.set_active_requests(load->running_requests() + load->waiting_requests());
  out.set_last_receive_timestamp(static_cast<double>(received_micros_) * 1e-6);
  out.set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - started_));
  out.set_server_type(kServerType);
  out.set_data_parallel_size(1);
  out.set_block_size(ToInt32(info->block_positions()));
  out.set_max_num_seqs(ToInt32(load->max_running_requests()));
  return out;
}

absl::StatusOr<vllm_pb::GetLoadsResponse> VllmService::Loads(
    const vllm_pb::GetLoadsRequest& request) const {
  const absl::StatusOr<v1::GetLoadResponse> load = frontend_.Load();
  if (!load.ok()) return load.status();
  vllm_pb::GetLoadsResponse out;
  out.set_timestamp(absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone()));
  out.set_version(ServerVersion());
  out.set_dp_rank_count(1);
  if (request.has_dp_rank() && request.dp_rank() != 0) return out;  // no such rank
  vllm_pb::SchedulerLoad& rank = *out.add_loads();
  rank.set_num_running_reqs(ToInt32(load->running_requests()));
  rank.set_num_waiting_reqs(ToInt32(load->waiting_requests()));
  rank.set_num_total_reqs(ToInt32(load->running_requests() + load->waiting_requests()));
  rank.set_max_running_requests(ToInt32(load->max_running_requests()));
  // What is promised counts: it is what new requests cannot have.
  const uint64_t used = load->kv_tokens_used() + load->kv_tokens_reserved();
  rank.set_num_used_tokens(ToInt32(used));
  rank.set_max_total_num_tokens(ToInt32(load->kv_tokens_total()));
  if (load->kv_tokens_total() > 0) {
    rank.set_token_usage(static_cast<double>(used) / static_cast<double>(load->kv_tokens_total()));
  }
  if (load->max_running_requests() > 0) {
    rank.set_utilization(static_cast<double>(load->running_requests()) /
                         load->max_running_requests());
  }
  rank.set_gen_throughput(load->generation_tokens_per_second());
  rank.set_cache_hit_rate(load->prefix_cache_hit_ratio());
  return out;
}

}  // namespace asynctls
