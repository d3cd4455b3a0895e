// SPDX-License-Identifier: Apache-2.0
#include "server/inference_service.h"

#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/logging.h"
#include "engine/text/chat_template.h"
#include "engine/text/detokenizer.h"
#include "server/grpc_status.h"

namespace asynctls {
namespace {

// Text waiting to be tokenized may be this many times the limit on waiting prompt tokens.
constexpr uint64_t kBytesPerToken = 4;

// A Generate call that never became a stream.
class RefusedCall final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  explicit RefusedCall(const absl::Status& why) { Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

void LogRefused(const std::string& id, const absl::Status& why) {
  spdlog::info("request id=\"{}\" end=refused code={} message=\"{}\"",
               id,
               absl::StatusCodeToString(why.code()),
               std::string(why.message()));
}

absl::Time Deadline(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

uint64_t RandomSeed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

std::vector<ChatTurn> Turns(const v1::ChatMessages& chat) {
  std::vector<ChatTurn> turns;
  for (const v1::ChatMessage& message : chat.messages()) {
    turns.push_back({message.role(), message.content()});
  }
  return turns;
}

ChatOptions TemplateOptions(const v1::ChatMessages& chat) {
  ChatOptions options;
  if (chat.has_add_generation_prompt()) {
    options.add_generation_prompt = chat.add_generation_prompt();
  }
  if (chat.has_enable_thinking()) options.enable_thinking = chat.enable_thinking();
  return options;
}

}  // namespace

std::string ServerVersion() { return ASYNCTLS_VERSION; }

InferenceService::InferenceService(Options options,
                                   Engine& engine,
                                   const Tokenizer& tokenizer,
                                   Metrics& metrics)
    : options_(std::move(options)), engine_(engine), tokenizer_(tokenizer), metrics_(metrics) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const std::string id = request->request_id().empty()
                             ? absl::StrCat("asynctls-", absl::Hex(RandomSeed(), absl::kZeroPad16))
                             : request->request_id();
  absl::StatusOr<std::shared_ptr<TokenStream>> stream = Admit(*context, *request, id);
  if (stream.ok()) return stream->get();
  LogRefused(id, stream.status());
  metrics_.CountRejected(stream.status());
  return new RefusedCall(stream.status());
}

absl::StatusOr<std::shared_ptr<TokenStream>> InferenceService::Admit(
    const grpc::CallbackServerContext& context,
    const v1::GenerateRequest& request,
    const std::string& id) {
  if (!admitting_) return absl::UnavailableError("the server is shutting down");
  absl::StatusOr<Request> resolved = ResolveRequest(request, options_.limits);
  if (!resolved.ok()) return resolved.status();
  const int64_t bytes = PromptBytes(request);
  absl::Status reserved = ReserveEncode(bytes);
  if (!reserved.ok()) return reserved;
  resolved->id = absl::StrCat(id, "/", next_id_++);  // never used twice, so that no late Cancel
                                                     // can hit a later request of the same name
  resolved->deadline = Deadline(context);
  absl::StatusOr<std::shared_ptr<TokenStream>> stream = OpenStream(id, resolved->id, request);
  if (!stream.ok()) {
    ReleaseEncode(bytes);
    return stream;
  }
  encode_pool_.Submit(
      [this, bytes, id, &request, stream = *stream, resolved = *std::move(resolved)]() mutable {
        const absl::Status submitted = Submit(request, id, std::move(resolved), stream);
        ReleaseEncode(bytes);
        if (submitted.ok()) return;
        LogRefused(id, submitted);
        stream->Refuse(submitted);
      });
  return stream;
}

absl::StatusOr<std::shared_ptr<TokenStream>> InferenceService::OpenStream(
    const std::string& id, const std::string& engine_id, const v1::GenerateRequest& request) {
  TokenStream::Options options;
  options.id = id;
  options.response = request.response();
  options.stop.assign(request.stopping().stop().begin(), request.stopping().stop().end());
  options.tokenizer = &tokenizer_;
  options.pool = &stream_pool_;
  options.cancel = [this, engine_id](absl::Status why) { engine_.Cancel(engine_id, why); };
  options.on_close = [this, id] {
    std::lock_guard lock(mu_);
    live_.erase(id);
  };
  std::lock_guard lock(mu_);
  std::weak_ptr<TokenStream>& entry = live_[id];
  if (!entry.expired()) {
    return absl::AlreadyExistsError(absl::StrCat("request_id '", id, "' is in use"));
  }
  std::shared_ptr<TokenStream> stream = TokenStream::Create(std::move(options));
  entry = stream;
  return stream;
}

absl::Status InferenceService::Submit(const v1::GenerateRequest& request,
                                      const std::string& id,
                                      Request resolved,
                                      const std::shared_ptr<TokenStream>& stream) {
  if (stream->client_gone()) {
    const absl::Status left = absl::CancelledError("the client left before its prompt was read");
    metrics_.CountRejected(left);
    return left;
  }
  absl::StatusOr<std::vector<uint32_t>> ids = PromptIds(request);
  absl::Status prompt = ids.status();
  if (prompt.ok()) prompt = ResolvePrompt(request, options_.limits, *std::move(ids), resolved);
  if (!prompt.ok()) {
    metrics_.CountRejected(prompt);
    return prompt;
  }
  if (!request.sampling().has_seed()) resolved.sampling.set_seed(RandomSeed());
  v1::Started started;
  started.set_request_id(id);
  started.set_seed(resolved.sampling.seed());
  started.set_prompt_tokens(static_cast<uint32_t>(resolved.prompt.size()));
  *started.mutable_sparse() = resolved.sparse;
  resolved.on_event = [stream](const TokenEvent& event) { stream->Push(event); };
  const absl::Status submitted = engine_.Submit(std::move(resolved));
  if (submitted.ok()) stream->Start(std::move(started));
  return submitted;
}

absl::Status InferenceService::ReserveEncode(int64_t bytes) {
  const uint64_t waiting = engine_.snapshot().waiting;
  std::lock_guard lock(mu_);
  if (waiting + encoding_ >= options_.max_waiting_requests) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the queue is full: ", options_.max_waiting_requests, " requests (max_waiting_requests)"));
  }
  const uint64_t limit = options_.max_waiting_prompt_tokens * kBytesPerToken;
  if (encoding_bytes_ + bytes > static_cast<int64_t>(limit)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the queue is full: ", limit, " bytes of prompts (4 x max_waiting_prompt_tokens)"));
  }
  ++encoding_;
  encoding_bytes_ += bytes;
  return absl::OkStatus();
}

void InferenceService::ReleaseEncode(int64_t bytes) {
  std::lock_guard lock(mu_);
  --encoding_;
  encoding_bytes_ -= bytes;
}

absl::StatusOr<std::vector<uint32_t>> InferenceService::PromptIds(
    const v1::GenerateRequest& request) const {
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    return std::vector<uint32_t>(ids.begin(), ids.end());
  }
  if (request.has_chat()) {
    return EncodeChat(tokenizer_, Turns(request.chat()), TemplateOptions(request.chat()));
  }
  return tokenizer_.Encode(request.text(), /*parse_special=*/true);
}

absl::Status InferenceService::TokenizeNow(const v1::TokenizeRequest& request,
                                           v1::TokenizeResponse& out) const {
  absl::StatusOr<std::vector<uint32_t>> ids;
  if (request.has_chat()) {
    const absl::Status checked = CheckChat("chat.messages", request.chat());
    if (!checked.ok()) return checked;
    const std::vector<ChatTurn> turns = Turns(request.chat());
    absl::StatusOr<std::string> text = RenderChat(turns, TemplateOptions(request.chat()));
    if (!text.ok()) return text.status();
    out.set_text(*std::move(text));
    ids = EncodeChat(tokenizer_, turns, TemplateOptions(request.chat()));
  } else if (request.has_text()) {
    ids =
        tokenizer_.Encode(request.text(), !request.has_parse_special() || request.parse_special());
  } else {
    return absl::InvalidArgumentError("one of text and chat is required");
  }
  if (ids.ok()) out.mutable_ids()->Assign(ids->begin(), ids->end());
  return ids.status();
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto bytes = static_cast<int64_t>(request->ByteSizeLong());
  const absl::Status reserved = ReserveEncode(bytes);
  if (!reserved.ok()) {
    reactor->Finish(ToGrpcStatus(reserved));
    return reactor;
  }
  encode_pool_.Submit([this, bytes, request, response, reactor] {
    const absl::Status status = TokenizeNow(*request, *response);
    ReleaseEncode(bytes);
    reactor->Finish(ToGrpcStatus(status));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = CheckTokenIds("ids", request->ids(), options_.limits.vocab);
  const auto bytes = static_cast<int64_t>(request->ByteSizeLong());
  if (status.ok()) status = ReserveEncode(bytes);
  if (!status.ok()) {
    reactor->Finish(ToGrpcStatus(status));
    return reactor;
  }
  encode_pool_.Submit([this, bytes, request, response, reactor] {
    const bool skip_special = !request->has_skip_special_tokens() || request->skip_special_tokens();
    Detokenizer detokenizer(tokenizer_, skip_special);
    std::string& text = *response->mutable_text();
    for (uint32_t id : request->ids()) text += detokenizer.Append(id);
    text += detokenizer.Flush();
    ReleaseEncode(bytes);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest*,
                                                         v1::GetModelInfoResponse* response) {
  *response = options_.info;
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Abort(grpc::CallbackServerContext* context,
                                                  const v1::AbortRequest* request,
                                                  v1::AbortResponse*) {
  for (const std::string& id : request->request_ids()) {
    std::shared_ptr<TokenStream> stream;
    {
      std::lock_guard lock(mu_);
      const auto found = live_.find(id);
      if (found != live_.end()) stream = found->second.lock();
    }
    if (stream != nullptr) stream->Abort(absl::AbortedError("ended by Abort"));
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace asynctls
