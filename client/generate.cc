// SPDX-License-Identifier: Apache-2.0
// asynctls generate: one reply, printed as it arrives.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "client/client.h"
#include "client/commands.h"
#include "client/request_fields.h"
#include "engine/base/json.h"
#include "proto/enum_names.h"

namespace asynctls {
namespace {

constexpr char kUsage[] =
    "usage: asynctls generate --target HOST:PORT (--prompt TEXT | --prompt-file F | --messages F)\n"
    "Prints the reply as it arrives; a summary goes to stderr. Exit code: 0, 1 the request "
    "failed,\n"
    "2 bad usage.\n\n";

absl::Status SetPrompt(const Flags& flags, v1::GenerateRequest& request) {
  const int given = flags.has("prompt") + flags.has("prompt-file") + flags.has("messages");
  if (given != 1) {
    return absl::InvalidArgumentError(
        "exactly one of --prompt, --prompt-file and --messages is required");
  }
  if (flags.has("messages")) {
    const std::string file = flags.Text("messages");
    absl::StatusOr<Json> json = ReadJsonFile(file);
    if (!json.ok()) return json.status();
    const bool wrapped = json->is_object() && json->contains("messages");
    auto chat = ParseMessages(wrapped ? (*json)["messages"] : *json, file);
    if (chat.ok()) *request.mutable_chat() = *std::move(chat);
    return chat.status();
  }
  std::string text = flags.Text("prompt");
  if (flags.has("prompt-file")) {
    absl::StatusOr<std::string> read = ReadFile(flags.Text("prompt-file"));
    if (!read.ok()) return read.status();
    text = *std::move(read);
  }
  if (flags.has("chat")) {
    v1::ChatMessage& message = *request.mutable_chat()->add_messages();
    message.set_role("user");
    message.set_content(text);
  } else {
    request.set_text(text);
  }
  return absl::OkStatus();
}

void ShowProgress(const v1::GenerateResponse& event, bool& shown) {
  if (event.has_progress()) {
    absl::FPrintF(stderr,
                  "\rreading the prompt: %d of %d tokens",
                  event.progress().prompt_tokens_done(),
                  event.progress().prompt_tokens());
    shown = true;
  } else if (event.has_delta() && shown) {
    absl::FPrintF(stderr, "\r\033[K");
    shown = false;
  }
}

uint64_t CompletionTokens(const GenerateReply& reply) {
  uint64_t tokens = 0;
  for (const Choice& s : reply.choices) tokens += s.finished.usage().completion_tokens();
  return tokens;
}

v1::KvRead TotalRead(const GenerateReply& reply) {
  v1::KvRead total;
  for (const Choice& s : reply.choices) {
    const v1::KvRead& read = s.finished.usage().kv_read();
    total.set_bytes(total.bytes() + read.bytes());
    total.set_dense_bytes(total.dense_bytes() + read.dense_bytes());
  }
  return total;
}

// Tokens after the first one, over the time they took.
double TokensPerSecond(const GenerateReply& reply) {
  const double seconds = absl::ToDoubleSeconds(reply.total - reply.first_token);
  const double tokens = static_cast<double>(CompletionTokens(reply));
  return seconds > 0 && tokens > 1 ? (tokens - 1) / seconds : 0;
}

void PrintSummary(const GenerateReply& reply) {
  const v1::Usage& usage = reply.finished().usage();
  absl::FPrintF(stderr,
                "\n[%s] prompt %d tokens (%d cached), first token after %.2f s; %d tokens at "
                "%.1f/s; read %.1f %% of the KV cache; seed %d\n",
                ReasonName(reply.finished().reason()),
                usage.prompt_tokens(),
                usage.cached_tokens(),
                absl::ToDoubleSeconds(reply.first_token),
                CompletionTokens(reply),
                TokensPerSecond(reply),
                100 * KvReadFraction(TotalRead(reply)),
                reply.started.seed());
}

// [{"id", "log_prob", "top": [{"id", "log_prob"}, ..]}, ..] of a message with parallel lists.
template <class Message>
Json LogProbs(const Message& message) {
  Json out = Json::array();
  for (int i = 0; i < message.log_probs_size(); ++i) {
    Json token = {{"log_prob", message.log_probs(i)}};
    if (i < message.token_ids_size()) token["id"] = message.token_ids(i);
    if (i < message.top_log_probs_size()) {
      const v1::TopLogProbs& top = message.top_log_probs(i);
      token["top"] = Json::array();
      for (int k = 0; k < std::min(top.token_ids_size(), top.log_probs_size()); ++k) {
        token["top"].push_back({{"id", top.token_ids(k)}, {"log_prob", top.log_probs(k)}});
      }
    }
    out.push_back(std::move(token));
  }
  return out;
}

Json ChoiceJson(const Choice& choice, size_t index) {
  Json out = {{"index", index},
              {"text", choice.text},
              {"finish_reason", ReasonName(choice.finished.reason())},
              {"completion_tokens", choice.finished.usage().completion_tokens()}};
  if (choice.tokens.log_probs_size() > 0) out["log_probs"] = LogProbs(choice.tokens);
  return out;
}

void PrintJson(const GenerateReply& reply) {
  const v1::Usage& usage = reply.finished().usage();
  const v1::KvRead read = TotalRead(reply);
  Json json = {
      {"request_id", reply.started.request_id()},
      {"text", reply.text()},
      {"finish_reason", ReasonName(reply.finished().reason())},
      {"seed", reply.started.seed()},
      {"prompt_tokens", usage.prompt_tokens()},
      {"cached_tokens", usage.cached_tokens()},
      {"completion_tokens", CompletionTokens(reply)},
      {"mode", ModeName(reply.started.sparse().mode())},
      {"budget", reply.started.sparse().budget()},
      {"blocks", reply.started.sparse().blocks()},
      {"kv_read_fraction", KvReadFraction(read)},
      {"kv_read_bytes", read.bytes()},
      {"kv_dense_bytes", read.dense_bytes()},
      {"first_token_seconds", absl::ToDoubleSeconds(reply.first_token)},
      {"total_seconds", absl::ToDoubleSeconds(reply.total)},
      {"tokens_per_second", TokensPerSecond(reply)},
      {"choices", Json::array()},
  };
  for (size_t i = 0; i < reply.choices.size(); ++i) {
    json["choices"].push_back(ChoiceJson(reply.choices[i], i));
  }
  if (reply.prompt.log_probs_size() > 0) json["prompt_log_probs"] = LogProbs(reply.prompt);
  absl::PrintF("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
}

// Several replies come interleaved, so they are printed when all are there.
void PrintAll(const GenerateReply& reply) {
  for (size_t i = 0; i < reply.choices.size(); ++i) {
    absl::PrintF("--- %d [%s]\n%s\n",
                 i,
                 ReasonName(reply.choices[i].finished.reason()),
                 reply.choices[i].text);
  }
}

}  // namespace

int Fail(const absl::Status& status, ExitCode code) {
  absl::FPrintF(stderr, "asynctls: %s\n", status.ToString());
  if (code == kExitUsage) absl::FPrintF(stderr, "--help lists the flags\n");
  return code;
}

const std::vector<FlagSpec>& GenerateFlags() {
  static const std::vector<FlagSpec> specs = [] {
    std::vector<FlagSpec> out = {
        {"target", "HOST:PORT", "the server"},
        {"prompt", "TEXT", "the prompt as it is"},
        {"prompt-file", "FILE", "the prompt as it is, from a file"},
        {"messages", "FILE", "JSON: a list of {\"role\", \"content\"}"},
        {"chat", "", "the prompt is what a user says in a chat"},
        {"thinking", "ON|OFF", "in a chat (the template's default)"},
        {"json", "", "print one JSON object at the end instead"},
    };
    out.insert(out.end(), RequestFieldSpecs().begin(), RequestFieldSpecs().end());
    return out;
  }();
  return specs;
}

absl::StatusOr<v1::GenerateRequest> GenerateRequestFrom(const Flags& flags) {
  v1::GenerateRequest request;
  absl::Status status = flags.Require({"target"});
  if (status.ok()) status = SetPrompt(flags, request);
  if (status.ok()) status = SetRequestFields(flags, request);
  if (!status.ok()) return status;
  if (flags.has("thinking")) {
    const std::string thinking = flags.Text("thinking");
    if (!request.has_chat() || (thinking != "on" && thinking != "off")) {
      return absl::InvalidArgumentError(
          "--thinking is on or off, and goes with --chat or --messages");
    }
    request.mutable_chat()->set_enable_thinking(thinking == "on");
  }
  if (!flags.has("json") && (flags.has("logprobs") || flags.has("prompt-logprobs"))) {
    return absl::InvalidArgumentError("--logprobs and --prompt-logprobs need --json");
  }
  return request;
}

int RunGenerate(const std::vector<std::string>& args) {
  if (std::count(args.begin(), args.end(), "--help") > 0) {
    absl::PrintF("%s%s", kUsage, Flags::Help(GenerateFlags()));
    return kExitOk;
  }
  absl::StatusOr<Flags> flags = Flags::Parse(GenerateFlags(), args);
  if (!flags.ok()) return Fail(flags.status(), kExitUsage);
  absl::StatusOr<v1::GenerateRequest> request = GenerateRequestFrom(*flags);
  if (!request.ok()) return Fail(request.status(), kExitUsage);

  const bool json = flags->has("json");
  const bool several = request->sampling().n() > 1;
  const bool terminal = isatty(STDERR_FILENO) != 0;
  bool progress_shown = false;
  Client client(flags->Text("target"));
  absl::StatusOr<GenerateReply> reply =
      client.Generate(*request, [&](const v1::GenerateResponse& event) {
        if (terminal) ShowProgress(event, progress_shown);
        if (json || several || !event.has_delta()) return;
        std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
        std::fflush(stdout);
      });
  if (!reply.ok()) return Fail(reply.status(), kExitFailed);
  if (json) {
    PrintJson(*reply);
  } else {
    if (several) {
      PrintAll(*reply);
    } else {
      std::fputc('\n', stdout);
    }
    std::fflush(stdout);
    PrintSummary(*reply);
  }
  return kExitOk;
}

}  // namespace asynctls
