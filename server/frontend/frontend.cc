// SPDX-License-Identifier: Apache-2.0
#include "server/frontend/frontend.h"

#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/logging.h"
#include "engine/text/chat_template.h"
#include "engine/text/detokenizer.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

// Text waiting to be tokenized may be this many times the limit on waiting prompt tokens.
constexpr uint64_t kBytesPerToken = 4;
// Loading a model takes about this long; a drain too, until another server has taken over.
constexpr absl::Duration kRetryUnavailable = absl::Seconds(10);

absl::Status Unavailable(const std::string& message, const std::string& reason) {
  return WithRetry(WithReason(absl::UnavailableError(message), reason), kRetryUnavailable);
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

absl::StatusOr<std::vector<uint32_t>> PromptIds(const v1::GenerateRequest& request,
                                                const Tokenizer& tokenizer) {
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    return std::vector<uint32_t>(ids.begin(), ids.end());
  }
  if (request.has_chat()) {
    return EncodeChat(tokenizer, Turns(request.chat()), TemplateOptions(request.chat()));
  }
  return tokenizer.Encode(request.text(), /*parse_special=*/true);
}

// The prompt's ids, and what depends on their number, into every sequence.
absl::Status ReadPrompt(const v1::GenerateRequest& request,
                        const Frontend::Serving& serving,
                        std::vector<Request>& sequences) {
  absl::StatusOr<std::vector<uint32_t>> ids = PromptIds(request, serving.tokenizer);
  absl::Status status = ids.status();
  const ServingLimits& limits = serving.options.limits;
  for (size_t i = 1; i < sequences.size() && status.ok(); ++i) {
    status = ResolvePrompt(request, limits, *ids, sequences[i]);
  }
  if (!status.ok()) return status;
  return ResolvePrompt(request, limits, *std::move(ids), sequences[0]);
}

// The engine's refusals with what every error of the front end has.
absl::Status WithAdvice(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return WithRetry(WithReason(std::move(status), "QUEUE_FULL"), kRetryQueueFull);
    case absl::StatusCode::kUnavailable:
      return WithRetry(WithReason(std::move(status), "UNAVAILABLE"), kRetryUnavailable);
    default:
      return status;
  }
}

absl::StatusOr<v1::TokenizeResponse> TokenizeNow(const v1::TokenizeRequest& request,
                                                 const Tokenizer& tokenizer) {
  v1::TokenizeResponse out;
  absl::StatusOr<std::vector<uint32_t>> ids;
  if (request.has_chat()) {
    const absl::Status checked = CheckChat("chat.messages", request.chat());
    if (!checked.ok()) return checked;
    const std::vector<ChatTurn> turns = Turns(request.chat());
    absl::StatusOr<std::string> text = RenderChat(turns, TemplateOptions(request.chat()));
    if (!text.ok()) return text.status();
    out.set_text(*std::move(text));
    ids = EncodeChat(tokenizer, turns, TemplateOptions(request.chat()));
  } else if (request.has_text()) {
    ids = tokenizer.Encode(request.text(), !request.has_parse_special() || request.parse_special());
  } else {
    return FieldError("text", "one of text and chat is required");
  }
  if (!ids.ok()) return ids.status();
  out.mutable_ids()->Assign(ids->begin(), ids->end());
  return out;
}

v1::DetokenizeResponse DetokenizeNow(const v1::DetokenizeRequest& request,
                                     const Tokenizer& tokenizer) {
  v1::DetokenizeResponse out;
  Detokenizer detokenizer(tokenizer,
                          !request.has_skip_special_tokens() || request.skip_special_tokens());
  for (uint32_t id : request.ids()) out.mutable_text()->append(detokenizer.Append(id));
  out.mutable_text()->append(detokenizer.Flush());
  return out;
}

void LogRefused(const std::string& id, const CallInfo& call, const absl::Status& why) {
  // Nobody has checked the id yet.
  const absl::string_view start = absl::string_view(id).substr(0, kMaxRequestIdBytes);
  spdlog::info("request id=\"{}\" protocol={} trace={} end=refused code={} message=\"{}\"",
               absl::CHexEscape(start),
               ProtocolName(call.protocol),
               call.trace_id.empty() ? "-" : call.trace_id,
               absl::StatusCodeToString(why.code()),
               std::string(why.message()));
}

// One engine request for each sequence: the first reads the prompt, the others follow it.
std::vector<Request> Sequences(Request first, uint32_t n) {
  std::vector<Request> out;
  out.reserve(n);
  for (uint32_t i = 1; i < n; ++i) {
    Request& next = out.emplace_back();
    next.id = absl::StrCat(first.id, ".", i);
    next.follows = first.id;
    next.prompt = first.prompt;
    next.max_tokens = first.max_tokens;
    next.sampling = first.sampling;
    next.sampling.set_index(i);
    next.sampling.set_prompt_log_probs(false);
    next.sparse = first.sparse;
    next.stop_tokens = first.stop_tokens;
    next.tail = first.tail;
    next.cache_salt = first.cache_salt;
    next.priority = first.priority;
    next.deadline = first.deadline;
  }
  out.insert(out.begin(), std::move(first));
  return out;
}

}  // namespace

std::string ServerVersion() { return ASYNCTLS_VERSION; }

Frontend::Frontend(Metrics& metrics) : metrics_(metrics) {}

void Frontend::Open(Options options, Engine& engine, const Tokenizer& tokenizer) {
  serving_ = std::make_unique<const Serving>(Serving{std::move(options), engine, tokenizer});
  open_ = true;
}

absl::StatusOr<const Frontend::Serving*> Frontend::serving() const {
  if (!open_) return Unavailable("the model is loading", "LOADING");
  return serving_.get();
}

// ----------------------------------------------------------------------------------- generating --

void Frontend::Generate(RequestPtr request,
                        const CallInfo& call,
                        const std::shared_ptr<ResponseWriter>& writer) {
  const std::string id = request->request_id().empty()
                             ? absl::StrCat("asynctls-", absl::Hex(RandomSeed(), absl::kZeroPad16))
                             : request->request_id();
  const absl::Status admitted = Admit(request, id, call, writer);
  if (!admitted.ok()) return Refuse(id, call, admitted, *writer);
  metrics_.requests_by(call.protocol).Increment();
}

void Frontend::Refuse(const std::string& id,
                      const CallInfo& call,
                      const absl::Status& why,
                      ResponseWriter& writer) {
  metrics_.requests_by(call.protocol).Increment();
  metrics_.CountRejected(why);
  LogRefused(id, call, why);
  writer.Finish(why);
}

absl::Status Frontend::Admit(const RequestPtr& request,
                             const std::string& id,
                             const CallInfo& call,
                             const std::shared_ptr<ResponseWriter>& writer) {
  const absl::StatusOr<const Serving*> serving = this->serving();
  if (!serving.ok()) return serving.status();
  if (!admitting_) return Unavailable("the server is shutting down", "DRAINING");
  absl::StatusOr<Request> resolved = ResolveRequest(*request, (*serving)->options.limits);
  if (!resolved.ok()) return resolved.status();
  const int64_t bytes = PromptBytes(*request);
  const absl::Status reserved = ReserveEncode(**serving, bytes, request->priority());
  if (!reserved.ok()) return reserved;
  // Never used twice, so that no late Cancel can hit a later request of the same name.
  resolved->id = absl::StrCat(id, "/", next_id_++);
  resolved->deadline = call.deadline;
  std::vector<Request> sequences =
      Sequences(*std::move(resolved), SequenceCount(request->sampling()));
  std::vector<std::string> engine_ids;
  for (const Request& sequence : sequences) engine_ids.push_back(sequence.id);
  auto generation = OpenGeneration(*request, id, call, std::move(engine_ids), writer);
  if (!generation.ok()) {
    ReleaseEncode(bytes);
    return generation.status();
  }
  writer->Attach(*generation);
  encode_pool_.Submit([this,
                       bytes,
                       id,
                       call,
                       request,
                       serving = *serving,
                       generation = *generation,
                       sequences = std::move(sequences)]() mutable {
    const absl::Status submitted = Submit(*serving, *request, id, std::move(sequences), generation);
    ReleaseEncode(bytes);
    if (submitted.ok()) return;
    LogRefused(id, call, submitted);
    generation->Refuse(submitted);
  });
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Generation>> Frontend::OpenGeneration(
    const v1::GenerateRequest& request,
    const std::string& id,
    const CallInfo& call,
    std::vector<std::string> engine_ids,
    const std::shared_ptr<ResponseWriter>& writer) {
  Generation::Options options;
  options.id = id;
  options.call = call;
  options.response = request.response();
  options.stopping = request.stopping();
  options.sequences = static_cast<uint32_t>(engine_ids.size());
  options.tokenizer = &serving_->tokenizer;
  options.pool = &stream_pool_;
  options.ticket = open_calls_.Enter();
  options.cancel = [this, engine_ids = std::move(engine_ids)](uint32_t index,
                                                              const absl::Status& why) {
    serving_->engine.Cancel(engine_ids[index], why);
  };
  options.on_close = [this, id](uint64_t tokens) {
    metrics_.sent_tokens.Increment(static_cast<double>(tokens));
    std::lock_guard lock(mu_);
    live_.erase(id);
  };
  std::lock_guard lock(mu_);
  std::weak_ptr<Generation>& entry = live_[id];
  if (!entry.expired()) {
    return WithReason(absl::AlreadyExistsError(absl::StrCat("request_id '", id, "' is in use")),
                      "DUPLICATE_REQUEST_ID");
  }
  std::shared_ptr<Generation> generation = Generation::Create(std::move(options), writer);
  entry = generation;
  return generation;
}

absl::Status Frontend::Submit(const Serving& serving,
                              const v1::GenerateRequest& request,
                              const std::string& id,
                              std::vector<Request> sequences,
                              const std::shared_ptr<Generation>& generation) {
  absl::Status status = generation->client_gone()
                            ? absl::CancelledError("the client left before its prompt was read")
                            : ReadPrompt(request, serving, sequences);
  if (!status.ok()) {
    metrics_.CountRejected(status);
    return status;
  }
  const uint64_t seed = request.sampling().has_seed() ? request.sampling().seed() : RandomSeed();
  for (uint32_t i = 0; i < sequences.size(); ++i) {
    sequences[i].sampling.set_seed(seed);
    sequences[i].on_event = [generation, i](const TokenEvent& event) {
      generation->Push(i, event);
    };
  }
  v1::Started started;
  started.set_request_id(id);
  started.set_seed(seed);
  started.set_prompt_tokens(static_cast<uint32_t>(sequences[0].prompt.size()));
  *started.mutable_sparse() = sequences[0].sparse;
  std::vector<uint32_t> scored;  // a long prompt is not kept twice without need
  if (request.response().has_prompt_log_probs()) scored = sequences[0].prompt;
  status = serving.engine.Submit(std::move(sequences));  // counts its refusals itself
  if (!status.ok()) return WithAdvice(std::move(status));
  generation->Start(std::move(started), std::move(scored));
  return absl::OkStatus();
}

void Frontend::Abort(const std::string& id) {
  std::shared_ptr<Generation> generation;
  {
    std::lock_guard lock(mu_);
    const auto found = live_.find(id);
    if (found != live_.end()) generation = found->second.lock();
  }
  if (generation != nullptr) generation->Abort(absl::AbortedError("ended by Abort"));
}

absl::Status Frontend::ReserveEncode(const Serving& serving, int64_t bytes, int32_t priority) {
  const Engine::Snapshot engine = serving.engine.snapshot();
  std::lock_guard lock(mu_);
  const absl::Status admitted = CheckOverload(Queue(serving, engine), bytes, priority);
  if (!admitted.ok()) return admitted;
  ++encoding_;
  encoding_bytes_ += bytes;
  return absl::OkStatus();
}

QueueLoad Frontend::Queue(const Serving& serving, const Engine::Snapshot& engine) const {
  const Options& options = serving.options;
  QueueLoad load;
  load.requests = engine.waiting + encoding_;
  load.max_requests = options.max_waiting_requests;
  load.tokens = engine.waiting_prompt_tokens;
  load.max_tokens = options.max_waiting_prompt_tokens;
  load.bytes = encoding_bytes_;
  load.max_bytes = options.max_waiting_prompt_tokens * kBytesPerToken;
  return load;
}

void Frontend::ReleaseEncode(int64_t bytes) {
  std::lock_guard lock(mu_);
  --encoding_;
  encoding_bytes_ -= bytes;
}

// ---------------------------------------------------------------------------------- other calls --

void Frontend::Tokenize(const v1::TokenizeRequest& request, Done<v1::TokenizeResponse> done) {
  const absl::StatusOr<const Serving*> serving = this->serving();
  if (!serving.ok()) return done(serving.status());
  const auto bytes = static_cast<int64_t>(request.ByteSizeLong());
  const absl::Status reserved = ReserveEncode(**serving, bytes, /*priority=*/0);
  if (!reserved.ok()) return done(reserved);
  encode_pool_.Submit(
      [this, bytes, &request, serving = *serving, done = std::move(done)]() mutable {
        auto response = TokenizeNow(request, serving->tokenizer);
        ReleaseEncode(bytes);
        done(std::move(response));
      });
}

void Frontend::Detokenize(const v1::DetokenizeRequest& request, Done<v1::DetokenizeResponse> done) {
  const absl::StatusOr<const Serving*> serving = this->serving();
  if (!serving.ok()) return done(serving.status());
  absl::Status status = CheckTokenIds("ids", request.ids(), (*serving)->options.limits.vocab);
  const auto bytes = static_cast<int64_t>(request.ByteSizeLong());
  if (status.ok()) status = ReserveEncode(**serving, bytes, /*priority=*/0);
  if (!status.ok()) return done(status);
  encode_pool_.Submit(
      [this, bytes, &request, serving = *serving, done = std::move(done)]() mutable {
        v1::DetokenizeResponse response = DetokenizeNow(request, serving->tokenizer);
        ReleaseEncode(bytes);
        done(std::move(response));
      });
}

absl::StatusOr<v1::GetModelInfoResponse> Frontend::ModelInfo() const {
  const absl::StatusOr<const Serving*> serving = this->serving();
  if (!serving.ok()) return serving.status();
  return (*serving)->options.info;
}

absl::StatusOr<v1::GetLoadResponse> Frontend::Load() const {
  const absl::StatusOr<const Serving*> serving = this->serving();
  if (!serving.ok()) return serving.status();
  const Options& options = (*serving)->options;
  const Engine::Snapshot engine = (*serving)->engine.snapshot();
  v1::GetLoadResponse out;
  out.set_running_requests(engine.running);
  out.set_max_running_requests(options.max_running_requests);
  out.set_max_waiting_requests(options.max_waiting_requests);
  const uint64_t block = options.info.block_positions();
  out.set_kv_tokens_used(engine.blocks_used * block);
  out.set_kv_tokens_reserved(engine.blocks_reserved * block);
  out.set_kv_tokens_total(engine.blocks_total * block);
  if (engine.prefix_query_tokens > 0) {
    out.set_prefix_cache_hit_ratio(static_cast<double>(engine.prefix_hit_tokens) /
                                   static_cast<double>(engine.prefix_query_tokens));
  }
  std::lock_guard lock(mu_);
  out.set_generation_tokens_per_second(generation_tokens_.PerSecond());
  out.set_waiting_requests(static_cast<uint32_t>(engine.waiting + encoding_));
  out.set_overload_level(OverloadLevel(Queue(**serving, engine)));
  return out;
}

void Frontend::SampleRates(absl::Time now) {
  const absl::StatusOr<const Serving*> serving = this->serving();
  if (!serving.ok()) return;
  const Engine::Snapshot engine = (*serving)->engine.snapshot();
  std::lock_guard lock(mu_);
  generation_tokens_.Sample(now, engine.generation_tokens);
  metrics_.overload_level.Set(OverloadLevel(Queue(**serving, engine)));
}

}  // namespace asynctls
