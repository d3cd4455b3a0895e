// SPDX-License-Identifier: Apache-2.0
// ChatSession: the state of `asynctls chat` and its /commands. No input, output or server: a line
// goes in, what to do comes out. Not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "asynctls/v1/generation.pb.h"
#include "client/client.h"

namespace asynctls {

// Request fields (client/request_fields.h) that make no sense in a chat.
bool IsChatField(const std::string& name);

class ChatSession {
 public:
  enum class Action {
    kNothing,  // the next line, please
    kAsk,      // send Request()
    kExit,
  };
  struct Result {
    Action action = Action::kNothing;
    std::string output;  // for the user
    absl::Status error;
  };

  // A message, or a command: starts with '/'. "//" starts a message with one '/'.
  Result Handle(const std::string& line);

  // The conversation and the settings.
  v1::GenerateRequest Request() const;
  // The end of what Action::kAsk began: the reply, whole or cut short by the user. Without any text
  // the question is taken back; /retry asks it again.
  void EndReply(const std::string& text);

  void SetSystem(const std::string& text) { system_ = text; }
  void SetThinking(bool on) { thinking_ = on; }
  void SetStats(bool on) { stats_ = on; }
  bool stats() const { return stats_; }
  // Errors: INVALID_ARGUMENT naming field and value.
  absl::Status Set(const std::string& name, const std::string& value);
  // A file as `generate --messages` takes. Errors: NOT_FOUND, INVALID_ARGUMENT.
  absl::Status Load(const std::string& file);
  absl::Status Save(const std::string& file) const;

 private:
  absl::Status Command(const std::string& name, const std::string& rest, Result& result);
  absl::Status SetSwitch(const std::string& name, const std::string& rest, Result& result);
  absl::Status Retry(Result& result);
  void AddMessage(const char* role, const std::string& content);

  std::string system_;
  std::vector<v1::ChatMessage> messages_;  // without the system's
  std::optional<std::string> unanswered_;  // a question that was taken back
  std::optional<bool> thinking_;
  bool stats_ = false;
  v1::GenerateRequest settings_;
};

// "12 tokens at 34.5/s, first after 0.21 s; prompt 100 tokens (64 cached); read 12.3 % of the KV".
std::string StatsLine(const GenerateReply& reply);

}  // namespace asynctls
