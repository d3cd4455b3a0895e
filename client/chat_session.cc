// SPDX-License-Identifier: Apache-2.0
#include "client/chat_session.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/request_fields.h"

namespace asynctls {
namespace {

constexpr char kHelp[] =
    "/system TEXT        what the model is told first; without TEXT: nothing\n"
    "/thinking on|off    whether the model thinks before it answers\n"
    "/mode M, /budget N  sparse attention: dense, exact, lagged; tokens per KV head\n"
    "/set NAME VALUE     any field, named as the flags (/set temperature 0.7); /set: show, /reset: "
    "forget\n"
    "/stats              tokens/s and KV read after each reply, on and off\n"
    "/retry              another answer to the last question\n"
    "/clear              forget the conversation\n"
    "/save F, /load F    the conversation as JSON\n"
    "/exit               or Ctrl-D; Ctrl-C ends a reply\n"
    "A line that ends in \\ goes on in the next one. //text sends /text.\n";

}  // namespace

bool IsChatField(const std::string& name) {
  for (const char* other : {"n", "logprobs", "prompt-logprobs", "request-id"}) {
    if (name == other) return false;
  }
  return true;
}

ChatSession::Result ChatSession::Handle(const std::string& line) {
  Result result;
  const std::string text(absl::StripAsciiWhitespace(line));
  if (text.empty()) return result;
  if (text[0] != '/' || absl::StartsWith(text, "//")) {
    AddMessage("user", text[0] == '/' ? text.substr(1) : line);
    unanswered_.reset();
    result.action = Action::kAsk;
    return result;
  }
  const std::vector<std::string> parts =
      absl::StrSplit(text.substr(1), absl::MaxSplits(absl::ByAnyChar(" \t"), 1));
  const std::string rest =
      parts.size() < 2 ? "" : std::string(absl::StripAsciiWhitespace(parts[1]));
  result.error = Command(parts[0], rest, result);
  return result;
}

absl::Status ChatSession::Command(const std::string& name,
                                  const std::string& rest,
                                  Result& result) {
  if (name == "help") {
    result.output = kHelp;
  } else if (name == "exit" || name == "quit") {
    result.action = Action::kExit;
  } else if (name == "clear") {
    messages_.clear();
    unanswered_.reset();
    result.output = "the conversation is empty\n";
  } else if (name == "system") {
    system_ = rest;
  } else if (name == "stats" || name == "thinking") {
    return SetSwitch(name, rest, result);
  } else if (name == "mode" || name == "budget") {
    return Set(name, rest);
  } else if (name == "set") {
    const std::vector<std::string> pair = absl::StrSplit(rest, absl::MaxSplits(' ', 1));
    if (rest.empty()) {
      const std::string settings = settings_.ShortDebugString();
      result.output = absl::StrCat(settings.empty() ? "nothing is set" : settings, "\n");
      return absl::OkStatus();
    }
    return Set(pair[0], pair.size() < 2 ? "" : pair[1]);
  } else if (name == "reset") {
    settings_.Clear();
    thinking_.reset();
  } else if (name == "retry") {
    return Retry(result);
  } else if (name == "save" || name == "load") {
    if (rest.empty()) return absl::InvalidArgumentError(absl::StrCat("/", name, " needs a file"));
    const absl::Status status = name == "save" ? Save(rest) : Load(rest);
    if (status.ok()) result.output = absl::StrCat(messages_.size(), " messages\n");
    return status;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("no command /", name, "; /help lists them"));
  }
  return absl::OkStatus();
}

absl::Status ChatSession::SetSwitch(const std::string& name,
                                    const std::string& rest,
                                    Result& result) {
  if (rest != "on" && rest != "off" && !(rest.empty() && name == "stats")) {
    return absl::InvalidArgumentError(absl::StrCat("/", name, ": '", rest, "' is not on or off"));
  }
  if (name == "thinking") {
    thinking_ = rest == "on";
  } else {
    stats_ = rest.empty() ? !stats_ : rest == "on";
    result.output = stats_ ? "stats are on\n" : "stats are off\n";
  }
  return absl::OkStatus();
}

absl::Status ChatSession::Retry(Result& result) {
  if (unanswered_.has_value()) {
    AddMessage("user", *unanswered_);
    unanswered_.reset();
  } else if (!messages_.empty() && messages_.back().role() == "assistant") {
    messages_.pop_back();
  }
  if (messages_.empty() || messages_.back().role() != "user") {
    return absl::FailedPreconditionError("there is no question to ask again");
  }
  result.action = Action::kAsk;
  return absl::OkStatus();
}

absl::Status ChatSession::Set(const std::string& name, const std::string& value) {
  if (!IsChatField(name)) {
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' cannot be set in a chat"));
  }
  return SetRequestField(name, value, settings_);
}

v1::GenerateRequest ChatSession::Request() const {
  v1::GenerateRequest request = settings_;
  v1::ChatMessages& chat = *request.mutable_chat();
  if (!system_.empty()) {
    v1::ChatMessage& message = *chat.add_messages();
    message.set_role("system");
    message.set_content(system_);
  }
  chat.mutable_messages()->Add(messages_.begin(), messages_.end());
  if (thinking_.has_value()) chat.set_enable_thinking(*thinking_);
  return request;
}

void ChatSession::EndReply(const std::string& text) {
  if (!text.empty()) return AddMessage("assistant", text);
  if (messages_.empty() || messages_.back().role() != "user") return;
  unanswered_ = messages_.back().content();
  messages_.pop_back();
}

void ChatSession::AddMessage(const char* role, const std::string& content) {
  messages_.emplace_back();
  messages_.back().set_role(role);
  messages_.back().set_content(content);
}

absl::Status ChatSession::Load(const std::string& file) {
  absl::StatusOr<Json> json = ReadJsonFile(file);
  if (!json.ok()) return json.status();
  const bool wrapped = json->is_object() && json->contains("messages");
  absl::StatusOr<v1::ChatMessages> chat =
      ParseMessages(wrapped ? (*json)["messages"] : *json, file);
  if (!chat.ok()) return chat.status();
  auto first = chat->messages().begin();
  system_ = first->role() == "system" ? first->content() : "";
  if (first->role() == "system") ++first;
  messages_.assign(first, chat->messages().end());
  unanswered_.reset();
  return absl::OkStatus();
}

absl::Status ChatSession::Save(const std::string& file) const {
  Json messages = Json::array();
  const v1::GenerateRequest request = Request();
  for (const v1::ChatMessage& message : request.chat().messages()) {
    messages.push_back({{"role", message.role()}, {"content", message.content()}});
  }
  const Json json = {{"messages", messages}};
  std::ofstream out(file);
  out << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
  out.close();
  return out ? absl::OkStatus()
             : absl::InvalidArgumentError(absl::StrCat(file, " cannot be written"));
}

std::string StatsLine(const GenerateReply& reply) {
  const v1::Usage& usage = reply.finished().usage();
  const double seconds = absl::ToDoubleSeconds(reply.total - reply.first_token);
  const double rest = std::max(0.0, usage.completion_tokens() - 1.0);
  return absl::StrFormat(
      "%d tokens at %.1f/s, first after %.2f s; prompt %d tokens (%d cached); read %.1f %% of the "
      "KV",
      usage.completion_tokens(),
      seconds > 0 ? rest / seconds : 0,
      absl::ToDoubleSeconds(reply.first_token),
      usage.prompt_tokens(),
      usage.cached_tokens(),
      100 * KvReadFraction(usage.kv_read()));
}

}  // namespace asynctls
