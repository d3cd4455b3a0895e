// SPDX-License-Identifier: Apache-2.0
#include "server/http/openai_request.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"
#include "server/frontend/request_checks.h"
#include "server/http/json_fields.h"

namespace asynctls {
namespace {

// ------------------------------------------------------------------------------------- one field
// --

// Ids of `array` appended to `out`.
template <class Ids>
void ReadIds(const Json& array, const std::string& path, JsonFields& fields, Ids& out) {
  for (size_t i = 0; i < array.size(); ++i) {
    const Json& id = array[i];
    if (id.is_number_unsigned() && id.get<uint64_t>() <= UINT32_MAX) {
      out.Add(id.get<uint32_t>());
      continue;
    }
    return fields.Fail(InvalidField(
        path, "[", i, "] must be a token id, not ", id.is_number() ? id.dump() : id.type_name()));
  }
}

void ReadStop(JsonFields& fields, v1::Stopping& out) {
  const Json* stop = fields.Any("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) return out.add_stop(stop->get<std::string>());
  if (!stop->is_array()) return fields.Fail("stop", " must be a string or an array of strings");
  for (const Json& one : *stop) {
    if (!one.is_string()) return fields.Fail("stop", " must be a string or an array of strings");
    out.add_stop(one.get<std::string>());
  }
}

void ReadLogitBias(JsonFields& fields, v1::Sampling& out) {
  const Json* bias = fields.Object("logit_bias");
  if (bias == nullptr) return;
  for (const auto& [key, value] : bias->items()) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || absl::StrCat(id) != key) {
      return fields.Fail("logit_bias",
                         absl::StrCat(" has the key '", key.substr(0, 64), "', which is no id"));
    }
    if (!value.is_number()) {
      return fields.Fail("logit_bias", absl::StrCat(" of ", id, " must be a number"));
    }
    (*out.mutable_logit_bias())[id] = static_cast<float>(value.get<double>());
  }
}

// vLLM's priorities go the other way: lower is earlier.
void ReadPriority(JsonFields& fields, v1::GenerateRequest& out) {
  const auto priority = fields.Integer("priority", -100, 100);
  if (priority.has_value()) out.set_priority(static_cast<int32_t>(-*priority));
}

void ReadSparse(JsonFields& parent, v1::GenerateRequest& out) {
  const Json* object = parent.Object("asynctls");
  if (object == nullptr) return;
  JsonFields fields(*object, "asynctls.");
  v1::Sparse& sparse = *out.mutable_sparse();
  if (const auto mode = fields.String("mode")) {
    if (*mode == "dense") sparse.set_mode(v1::ATTENTION_MODE_DENSE);
    if (*mode == "exact") sparse.set_mode(v1::ATTENTION_MODE_EXACT);
    if (*mode == "lagged") sparse.set_mode(v1::ATTENTION_MODE_LAGGED);
    if (!sparse.has_mode()) fields.Fail("mode", " must be dense, exact or lagged");
  }
  if (const auto selector = fields.String("selector")) {
    if (*selector == "code") sparse.set_selector(v1::SELECTOR_CODE);
    if (*selector == "bound") sparse.set_selector(v1::SELECTOR_BOUND);
    if (!sparse.has_selector()) fields.Fail("selector", " must be code or bound");
  }
  if (const auto budget = fields.Unsigned("budget")) sparse.set_budget(*budget);
  if (const auto blocks = fields.Unsigned("blocks")) sparse.set_blocks(*blocks);
  if (const auto top_p = fields.Float("top_p")) sparse.set_top_p(*top_p);
  if (const auto tail = fields.Unsigned("tail")) sparse.set_tail(*tail);
  parent.Fail(fields.Finish());
}

// Members that change nothing here, as long as they ask for nothing.
void ReadNoOps(JsonFields& fields) {
  for (const char* name : {"user", "safety_identifier", "prompt_cache_key"}) fields.String(name);
  fields.Object("metadata");
  fields.Bool("parallel_tool_calls");
  if (fields.Bool("store").value_or(false)) fields.Unsupported("store", " true");
  const std::string tier = fields.String("service_tier").value_or("auto");
  if (tier != "auto" && tier != "default")
    fields.Unsupported("service_tier", absl::StrCat(" '", tier.substr(0, 64), "'"));
  if (const Json* format = fields.Object("response_format")) {
    JsonFields inner(*format, "response_format.");
    const std::string type = inner.String("type").value_or("");
    if (type != "text") {
      inner.Unsupported("type", absl::StrCat(" '", type.substr(0, 64), "'"));
      fields.Fail(inner.Finish());
    } else {
      fields.Fail(inner.Finish());
    }
  }
}

void ReadStreaming(JsonFields& fields, OpenAiOptions& out) {
  out.stream = fields.Bool("stream").value_or(false);
  const Json* options = fields.Object("stream_options");
  if (options == nullptr) return;
  if (!out.stream) return fields.Fail("stream_options", " is for streams only");
  JsonFields inner(*options, "stream_options.");
  out.include_usage = inner.Bool("include_usage").value_or(false);
  fields.Fail(inner.Finish());
}

// ----------------------------------------------------------------------------- the two endpoints
// --

void ReadSampling(JsonFields& fields, v1::Sampling& out) {
  if (const auto v = fields.Float("temperature")) out.set_temperature(*v);
  if (const auto v = fields.Float("top_p")) out.set_top_p(*v);
  if (const auto v = fields.Float("min_p")) out.set_min_p(*v);
  if (const auto v = fields.Float("presence_penalty")) out.set_presence_penalty(*v);
  if (const auto v = fields.Float("frequency_penalty")) out.set_frequency_penalty(*v);
  if (const auto v = fields.Float("repetition_penalty")) out.set_repetition_penalty(*v);
  if (const auto v = fields.Integer("top_k", INT32_MIN, INT32_MAX)) {
    out.set_top_k(static_cast<int32_t>(*v));
  }
  if (const auto v = fields.Seed("seed")) out.set_seed(*v);
  if (const auto v = fields.Unsigned("n")) out.set_n(*v);
  ReadLogitBias(fields, out);
}

void ReadStopping(JsonFields& fields, v1::Stopping& out) {
  const auto max_tokens = fields.Unsigned("max_tokens");
  if (max_tokens.has_value()) out.set_max_tokens(*max_tokens);
  if (const auto v = fields.Unsigned("min_tokens")) out.set_min_tokens(*v);
  if (const auto v = fields.Bool("ignore_eos")) out.set_ignore_eos(*v);
  if (const auto v = fields.Bool("include_stop_str_in_output")) out.set_include_stop(*v);
  if (const Json* ids = fields.Array("stop_token_ids")) {
    ReadIds(*ids, "stop_token_ids", fields, *out.mutable_stop_token_ids());
  }
  ReadStop(fields, out);
}

// What both endpoints take, but for the prompt and logprobs.
void ReadCommon(JsonFields& fields, OpenAiRequest& out) {
  out.prompts.push_back(std::make_shared<v1::GenerateRequest>());
  v1::GenerateRequest& request = *out.prompts[0];
  request.set_model(fields.String("model").value_or(""));
  request.set_request_id(fields.String("request_id").value_or(""));
  request.set_cache_salt(fields.String("cache_salt").value_or(""));
  ReadStreaming(fields, out.options);
  ReadSampling(fields, *request.mutable_sampling());
  ReadStopping(fields, *request.mutable_stopping());
  ReadPriority(fields, request);
  ReadSparse(fields, request);
  ReadNoOps(fields);
  v1::ResponseOptions& response = *request.mutable_response();
  if (const auto v = fields.Bool("skip_special_tokens")) response.set_skip_special_tokens(*v);
  if (const auto v = fields.Unsigned("prompt_logprobs")) {
    if (out.options.stream) fields.Unsupported("prompt_logprobs", " in a stream");
    out.options.prompt_logprobs = true;
    response.set_prompt_log_probs(*v);
  }
}

void AskForLogProbs(OpenAiRequest& out, uint32_t top) {
  out.options.logprobs = top;
  v1::ResponseOptions& response = *out.prompts[0]->mutable_response();
  response.set_token_ids(true);
  response.set_log_probs(true);
  if (top > 0) response.set_top_log_probs(top);
}

// ------------------------------------------------------------------------------------------ chat
// --

std::string ReadContent(JsonFields& message) {
  const Json* content = message.Any("content");
  if (content == nullptr) {
    message.Fail("content", " is required");
    return "";
  }
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) {
    message.Fail("content", " must be a string or an array of text parts");
    return "";
  }
  std::string out;
  for (size_t i = 0; i < content->size(); ++i) {
    JsonFields part((*content)[i], message.Path(absl::StrCat("content[", i, "].").c_str()));
    const std::string type = part.String("type").value_or("");
    if (type != "text") part.Unsupported("type", absl::StrCat(" '", type.substr(0, 64), "'"));
    const auto text = part.String("text");
    if (!text.has_value()) part.Fail("text", " is required");
    message.Fail(part.Finish());
    out += text.value_or("");
  }
  return out;
}

void ReadMessages(JsonFields& fields, v1::ChatMessages& out) {
  const Json* messages = fields.Array("messages");
  if (messages == nullptr) return fields.Fail("messages", " is required");
  for (size_t i = 0; i < messages->size(); ++i) {
    JsonFields message((*messages)[i], absl::StrCat("messages[", i, "]."));
    v1::ChatMessage& turn = *out.add_messages();
    turn.set_role(message.String("role").value_or(""));
    if (turn.role() == "developer") turn.set_role("system");  // OpenAI's new name for it
    turn.set_content(ReadContent(message));
    // The template leaves out the thinking of earlier turns.
    message.String("reasoning_content");
    for (const char* none : {"tool_calls", "annotations"}) {
      const Json* list = message.Array(none);
      if (list != nullptr && !list->empty()) message.Unsupported(none);
    }
    fields.Fail(message.Finish());
  }
}

void ReadTemplate(JsonFields& fields, v1::ChatMessages& out) {
  if (const auto v = fields.Bool("add_generation_prompt")) out.set_add_generation_prompt(*v);
  const Json* kwargs = fields.Object("chat_template_kwargs");
  if (kwargs == nullptr) return;
  JsonFields inner(*kwargs, "chat_template_kwargs.");
  if (const auto v = inner.Bool("enable_thinking")) out.set_enable_thinking(*v);
  fields.Fail(inner.Finish());
}

void RefuseTools(JsonFields& fields) {
  const Json* tools = fields.Array("tools");
  if (tools != nullptr && !tools->empty()) fields.Unsupported("tools");
  const Json* choice = fields.Any("tool_choice");
  if (choice != nullptr && *choice != "none") fields.Unsupported("tool_choice", " other than none");
}

// --------------------------------------------------------------------------------- completions --

// One prompt for each string, or for each list of ids.
void ReadPrompts(JsonFields& fields, OpenAiRequest& out) {
  const Json* prompt = fields.Any("prompt");
  if (prompt == nullptr) return fields.Fail("prompt", " is required");
  if (prompt->is_string()) return out.prompts[0]->set_text(prompt->get<std::string>());
  if (!prompt->is_array() || prompt->empty()) {
    return fields.Fail("prompt", " must be a string, strings, ids or lists of ids");
  }
  if ((*prompt)[0].is_number()) {
    auto& ids = *out.prompts[0]->mutable_token_ids()->mutable_ids();
    return ReadIds(*prompt, "prompt", fields, ids);
  }
  if (prompt->size() > kMaxPrompts) {
    return fields.Fail(
        "prompt", absl::StrCat(" has ", prompt->size(), " prompts; the limit is ", kMaxPrompts));
  }
  const v1::GenerateRequest common = *out.prompts[0];
  for (size_t i = 0; i < prompt->size(); ++i) {
    if (i > 0) out.prompts.push_back(std::make_shared<v1::GenerateRequest>(common));
    const Json& one = (*prompt)[i];
    const std::string path = absl::StrCat("prompt[", i, "]");
    if (one.is_string()) {
      out.prompts[i]->set_text(one.get<std::string>());
    } else if (one.is_array()) {
      ReadIds(one, path, fields, *out.prompts[i]->mutable_token_ids()->mutable_ids());
    } else {
      return fields.Fail(InvalidField(path, " must be a string or a list of ids"));
    }
  }
}

void ReadEcho(JsonFields& fields, OpenAiRequest& out) {
  out.options.echo = fields.Bool("echo").value_or(false);
  if (!out.options.echo || !out.options.logprobs.has_value()) return;
  if (out.options.stream) return fields.Unsupported("echo", " with logprobs in a stream");
  if (out.options.prompt_logprobs) {
    return fields.Fail("prompt_logprobs", " with echo and logprobs asks for the same twice");
  }
  out.prompts[0]->mutable_response()->set_prompt_log_probs(*out.options.logprobs);
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseChatRequest(const std::string& body) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  OpenAiRequest out;
  out.options.chat = true;
  JsonFields fields(*json, "");
  ReadCommon(fields, out);
  v1::GenerateRequest& request = *out.prompts[0];
  if (const auto v = fields.Unsigned("max_completion_tokens")) {  // supersedes max_tokens
    request.mutable_stopping()->set_max_tokens(*v);
  }
  const bool logprobs = fields.Bool("logprobs").value_or(false);
  const auto top = fields.Unsigned("top_logprobs");
  if (top.value_or(0) > 0 && !logprobs) fields.Fail("top_logprobs", " needs logprobs: true");
  if (logprobs) AskForLogProbs(out, top.value_or(0));
  ReadMessages(fields, *request.mutable_chat());
  ReadTemplate(fields, *request.mutable_chat());
  RefuseTools(fields);
  out.options.split_reasoning =
      !request.chat().has_enable_thinking() || request.chat().enable_thinking();
  const absl::Status status = fields.Finish();
  if (!status.ok()) return status;
  return out;
}

absl::StatusOr<OpenAiRequest> ParseCompletionRequest(const std::string& body) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  OpenAiRequest out;
  JsonFields fields(*json, "");
  ReadCommon(fields, out);
  if (const auto top = fields.Integer("logprobs", 0, kMaxTopLogProbs)) {
    AskForLogProbs(out, static_cast<uint32_t>(*top));
  }
  ReadEcho(fields, out);
  if (!fields.String("suffix").value_or("").empty()) fields.Unsupported("suffix");
  const auto best_of = fields.Unsigned("best_of");
  if (best_of.has_value() && *best_of != 1) fields.Unsupported("best_of", " other than 1");
  ReadPrompts(fields, out);
  const absl::Status status = fields.Finish();
  if (!status.ok()) return status;
  return out;
}

absl::StatusOr<TokenizeCall> ParseTokenizeRequest(const std::string& body) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  TokenizeCall out;
  JsonFields fields(*json, "");
  out.model = fields.String("model").value_or("");
  out.token_strings = fields.Bool("return_token_strs").value_or(false);
  fields.Bool("add_special_tokens");  // Qwen's tokenizers add none
  if (fields.Any("messages") != nullptr) {
    ReadMessages(fields, *out.request.mutable_chat());
    ReadTemplate(fields, *out.request.mutable_chat());
    if (fields.Any("prompt") != nullptr) fields.Fail("prompt", " and messages exclude each other");
  } else if (const auto prompt = fields.String("prompt")) {
    out.request.set_text(*prompt);
  } else {
    fields.Fail("prompt", " or messages is required");
  }
  const absl::Status status = fields.Finish();
  if (!status.ok()) return status;
  return out;
}

absl::StatusOr<DetokenizeCall> ParseDetokenizeRequest(const std::string& body) {
  const absl::StatusOr<Json> json = ParseBody(body);
  if (!json.ok()) return json.status();
  DetokenizeCall out;
  JsonFields fields(*json, "");
  out.model = fields.String("model").value_or("");
  out.request.set_skip_special_tokens(false);  // as vLLM: all ids are shown
  const Json* ids = fields.Array("tokens");
  if (ids == nullptr) {
    fields.Fail("tokens", " is required");
  } else {
    ReadIds(*ids, "tokens", fields, *out.request.mutable_ids());
  }
  const absl::Status status = fields.Finish();
  if (!status.ok()) return status;
  return out;
}

}  // namespace asynctls
