// SPDX-License-Identifier: Apache-2.0
// asynctls generate: one reply, printed as it arrives.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/client.h"
#include "client/commands.h"
#include "engine/base/json.h"

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

absl::Status SetSparse(const Flags& flags, v1::Sparse& sparse) {
  if (flags.has("mode")) {
    v1::AttentionMode mode;
    const std::string name =
        absl::StrCat("ATTENTION_MODE_", absl::AsciiStrToUpper(flags.Text("mode")));
    if (!v1::AttentionMode_Parse(name, &mode) || mode == v1::ATTENTION_MODE_UNSPECIFIED) {
      return absl::InvalidArgumentError(
          absl::StrCat("--mode: '", flags.Text("mode"), "' is not dense, exact or lagged"));
    }
    sparse.set_mode(mode);
  }
  if (flags.has("selector")) {
    const std::string name = flags.Text("selector");
    if (name != "code" && name != "bound") {
      return absl::InvalidArgumentError(
          absl::StrCat("--selector: '", name, "' is not code or bound"));
    }
    sparse.set_selector(name == "code" ? v1::SELECTOR_CODE : v1::SELECTOR_BOUND);
  }
  struct Field {
    const char* flag;
    void (v1::Sparse::*set)(uint32_t);
  };
  for (const Field& field : {Field{"budget", &v1::Sparse::set_budget},
                             Field{"blocks", &v1::Sparse::set_blocks},
                             Field{"tail", &v1::Sparse::set_tail}}) {
    if (!flags.has(field.flag)) continue;
    auto value = flags.Whole(field.flag, 0, 0, UINT32_MAX);
    if (!value.ok()) return value.status();
    (sparse.*field.set)(static_cast<uint32_t>(*value));
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

// FINISH_REASON_STOP without its prefix is "stop".
std::string ShortName(const std::string& name, const std::string& prefix) {
  return absl::AsciiStrToLower(name.substr(prefix.size()));
}

std::string ReasonName(v1::FinishReason reason) {
  return ShortName(v1::FinishReason_Name(reason), "FINISH_REASON_");
}

// Tokens after the first one, over the time they took.
double TokensPerSecond(const Reply& reply) {
  const double seconds = absl::ToDoubleSeconds(reply.total - reply.first_token);
  const double tokens = reply.finished.usage().completion_tokens();
  return seconds > 0 && tokens > 1 ? (tokens - 1) / seconds : 0;
}

void PrintSummary(const Reply& reply) {
  const v1::Usage& usage = reply.finished.usage();
  absl::FPrintF(stderr,
                "\n[%s] prompt %d tokens (%d cached), first token after %.2f s; %d tokens at "
                "%.1f/s; read %.1f %% of the KV cache; seed %d\n",
                ReasonName(reply.finished.reason()),
                usage.prompt_tokens(),
                usage.cached_tokens(),
                absl::ToDoubleSeconds(reply.first_token),
                usage.completion_tokens(),
                TokensPerSecond(reply),
                100 * KvReadFraction(usage.kv_read()),
                reply.started.seed());
}

void PrintJson(const Reply& reply) {
  const v1::Usage& usage = reply.finished.usage();
  const Json json = {
      {"request_id", reply.started.request_id()},
      {"text", reply.text},
      {"finish_reason", ReasonName(reply.finished.reason())},
      {"seed", reply.started.seed()},
      {"prompt_tokens", usage.prompt_tokens()},
      {"cached_tokens", usage.cached_tokens()},
      {"completion_tokens", usage.completion_tokens()},
      {"mode", ShortName(v1::AttentionMode_Name(reply.started.sparse().mode()), "ATTENTION_MODE_")},
      {"budget", reply.started.sparse().budget()},
      {"blocks", reply.started.sparse().blocks()},
      {"kv_read_fraction", KvReadFraction(usage.kv_read())},
      {"kv_read_bytes", usage.kv_read().bytes()},
      {"kv_dense_bytes", usage.kv_read().dense_bytes()},
      {"first_token_seconds", absl::ToDoubleSeconds(reply.first_token)},
      {"total_seconds", absl::ToDoubleSeconds(reply.total)},
      {"tokens_per_second", TokensPerSecond(reply)},
  };
  absl::PrintF("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

int Fail(const absl::Status& status, ExitCode code) {
  absl::FPrintF(stderr, "asynctls: %s\n", status.ToString());
  if (code == kExitUsage) absl::FPrintF(stderr, "--help lists the flags\n");
  return code;
}

const std::vector<FlagSpec>& GenerateFlags() {
  static const std::vector<FlagSpec> specs = {
      {"target", "HOST:PORT", "the server"},
      {"prompt", "TEXT", "the prompt as it is"},
      {"prompt-file", "FILE", "the prompt as it is, from a file"},
      {"messages", "FILE", "JSON: a list of {\"role\", \"content\"}"},
      {"chat", "", "the prompt is what a user says in a chat"},
      {"mode", "M", "dense, exact or lagged (the server's default)"},
      {"selector", "S", "code or bound"},
      {"budget", "N", "tokens attended per KV head"},
      {"blocks", "N", "blocks kept by the first level"},
      {"tail", "N", "last prompt tokens that go through the decode path"},
      {"max-tokens", "N", "longest reply"},
      {"temperature", "X", "0 = greedy"},
      {"seed", "N", "same seed, same reply"},
      {"json", "", "print one JSON object at the end instead"},
  };
  return specs;
}

absl::StatusOr<v1::GenerateRequest> GenerateRequestFrom(const Flags& flags) {
  v1::GenerateRequest request;
  absl::Status status = flags.Require({"target"});
  if (status.ok()) status = SetPrompt(flags, request);
  if (status.ok()) status = SetSparse(flags, *request.mutable_sparse());
  if (!status.ok()) return status;
  auto max_tokens = flags.Whole("max-tokens", 0, 1, UINT32_MAX);
  auto seed = flags.Whole("seed", 0, 0, UINT64_MAX);
  auto temperature = flags.Real("temperature", 0);
  for (const absl::Status& s : {max_tokens.status(), seed.status(), temperature.status()}) {
    if (!s.ok()) return s;
  }
  if (flags.has("max-tokens")) {
    request.mutable_stopping()->set_max_tokens(static_cast<uint32_t>(*max_tokens));
  }
  if (flags.has("seed")) request.mutable_sampling()->set_seed(*seed);
  if (flags.has("temperature")) {
    request.mutable_sampling()->set_temperature(static_cast<float>(*temperature));
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
  const bool terminal = isatty(STDERR_FILENO) != 0;
  bool progress_shown = false;
  Client client(flags->Text("target"));
  absl::StatusOr<Reply> reply = client.Generate(*request, [&](const v1::GenerateResponse& event) {
    if (terminal) ShowProgress(event, progress_shown);
    if (json || !event.has_delta()) return;
    std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
    std::fflush(stdout);
  });
  if (!reply.ok()) return Fail(reply.status(), kExitFailed);
  if (json) {
    PrintJson(*reply);
  } else {
    std::fputc('\n', stdout);
    std::fflush(stdout);
    PrintSummary(*reply);
  }
  return kExitOk;
}

}  // namespace asynctls
