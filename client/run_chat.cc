// SPDX-License-Identifier: Apache-2.0
// asynctls chat: reads lines, shows replies as they arrive.
#include <algorithm>
#include <atomic>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "client/chat_session.h"
#include "client/client.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/line_reader.h"
#include "client/request_fields.h"

namespace asynctls {
namespace {

constexpr char kUsage[] =
    "usage: asynctls chat --target HOST:PORT [flags]\n"
    "A conversation; /help lists the commands. Where stdin or stdout is no terminal, lines are "
    "read\n"
    "as they are. Exit code: 0, 1 a reply or command failed and lines are not edited, 2 bad "
    "usage.\n\n";

const std::vector<FlagSpec>& ChatFlags() {
  static const std::vector<FlagSpec> specs = [] {
    std::vector<FlagSpec> out = {
        {"target", "HOST:PORT", "the server"},
        {"system", "TEXT", "what the model is told first"},
        {"load", "FILE", "go on with a saved conversation"},
        {"thinking", "ON|OFF", "(the template's default)"},
        {"stats", "", "tokens/s and KV read after each reply"},
    };
    for (const FlagSpec& field : RequestFieldSpecs()) {
      if (IsChatField(field.name)) out.push_back(field);
    }
    return out;
  }();
  return specs;
}

absl::Status Configure(const Flags& flags, ChatSession& session) {
  absl::Status status = flags.Require({"target"});
  if (status.ok() && flags.has("load")) status = session.Load(flags.Text("load"));
  if (flags.has("system")) session.SetSystem(flags.Text("system"));
  const std::string thinking = flags.Text("thinking", "on");
  if (thinking != "on" && thinking != "off") {
    status.Update(absl::InvalidArgumentError("--thinking is on or off"));
  }
  if (flags.has("thinking")) session.SetThinking(thinking == "on");
  session.SetStats(flags.has("stats"));
  for (const FlagSpec& field : RequestFieldSpecs()) {
    for (const std::string& value : flags.All(field.name)) {
      const absl::Status set = session.Set(field.name, value);
      if (!set.ok()) status.Update(absl::InvalidArgumentError("--" + std::string(set.message())));
    }
  }
  return status;
}

// A line, and those it is continued in.
std::optional<std::string> ReadMessage(LineReader& reader) {
  std::optional<std::string> message = reader.Read("> ");
  while (message.has_value() && absl::EndsWith(*message, "\\")) {
    message->back() = '\n';
    const std::optional<std::string> more = reader.Read(". ");
    if (!more.has_value()) break;
    *message += *more;
  }
  return message;
}

// Shows one reply. Returns whether it came, whole or until Ctrl-C.
bool Ask(Client& client, ChatSession& session) {
  std::string text;
  Canceller canceller;
  CallOptions call;
  call.canceller = &canceller;
  std::atomic<bool> interrupted{false};
  absl::StatusOr<GenerateReply> reply = absl::UnknownError("not asked");
  {
    InterruptScope scope([&] {
      interrupted = true;
      canceller.Cancel();
    });
    reply = client.Generate(
        session.Request(),
        [&](const v1::GenerateResponse& event) {
          text += event.delta().text();
          std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
          std::fflush(stdout);
        },
        call);
  }
  const bool stopped = !reply.ok() && interrupted && absl::IsCancelled(reply.status());
  session.EndReply(reply.ok() || stopped ? text : "");
  if (reply.ok() || !text.empty()) std::fputs(stopped ? " [ended]\n" : "\n", stdout);
  std::fflush(stdout);
  if (!reply.ok() && !stopped) Fail(reply.status(), kExitFailed);
  if (reply.ok() && session.stats()) absl::PrintF("[%s]\n", StatsLine(*reply));
  return reply.ok() || stopped;
}

}  // namespace

int RunChat(const std::vector<std::string>& args) {
  if (std::count(args.begin(), args.end(), "--help") > 0) {
    absl::PrintF("%s%s", kUsage, Flags::Help(ChatFlags()));
    return kExitOk;
  }
  absl::StatusOr<Flags> flags = Flags::Parse(ChatFlags(), args);
  if (!flags.ok()) return Fail(flags.status(), kExitUsage);
  ChatSession session;
  const absl::Status configured = Configure(*flags, session);
  if (!configured.ok()) return Fail(configured, kExitUsage);
  Client client(flags->Text("target"));
  LineReader reader(stdin, stdout);
  bool all_came = true;
  while (true) {
    const std::optional<std::string> line = ReadMessage(reader);
    if (!line.has_value()) break;
    const ChatSession::Result result = session.Handle(*line);
    std::fputs(result.output.c_str(), stdout);
    std::fflush(stdout);
    if (!result.error.ok()) {
      absl::FPrintF(stderr, "%s\n", std::string(result.error.message()));
      all_came = false;
    }
    if (result.action == ChatSession::Action::kExit) break;
    if (result.action == ChatSession::Action::kAsk) all_came &= Ask(client, session);
  }
  if (reader.editing()) std::fputc('\n', stdout);
  return all_came || reader.editing() ? kExitOk : kExitFailed;
}

}  // namespace asynctls
