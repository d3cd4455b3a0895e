// SPDX-License-Identifier: Apache-2.0
#include "server/config.h"

#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "engine/base/host_port.h"
#include "engine/base/json.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace asynctls {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int64_t kMaxConfigFileBytes = 1 << 20;
constexpr size_t kMaxModelNameBytes = 256;

// What --help says of a field, and the range of a number (of `max` 0: no range of its own).
struct FieldRule {
  const char* path;
  const char* help;
  uint64_t min = 0;
  uint64_t max = 0;
};

constexpr FieldRule kRules[] = {
    {"model", "model folder in HuggingFace layout (required)"},
    {"listen", "address of the gRPC service, HOST:PORT; port 0 = any free one"},
    {"metrics_listen", "address of GET /metrics, HOST:PORT, or none"},
    {"http_listen", "address of the OpenAI-compatible HTTP service and status page, or none"},
    {"served_model_name", "name of the model to clients; empty = the folder's name"},
    {"metrics_compat", "vllm: the metrics again under vLLM's names; or none"},
    {"weights", "files, or synthetic: random weights of the model's shapes"},
    {"kv_memory_mib",
     "memory for KV and key codes of each rank, MiB; 0 = 2048, on a GPU what is free",
     0,
     1 << 26},
    {"max_sequences", "requests generated at the same time", 1, 4096},
    {"max_step_tokens", "tokens of one step, all requests together", 16, 1 << 20},
    {"max_mixed_tokens",
     "prompt tokens of a step that also generates; 0 = 512 on a GPU, else max_step_tokens",
     0,
     1 << 20},
    {"plans_in_flight",
     "steps given to the ranks at once; 0 = 2 on a GPU, which then never waits, else 1",
     0,
     2},
    {"max_context", "positions of one request; 0 = what the model says", 0, 1 << 28},
    {"threads", "threads of each rank; 0 = cores / ranks", 0, 4096},
    {"tensor_parallel", "ranks, in this process; on GPUs 0, 1, ...", 1, 64},
    {"device", "cpu, cuda, or auto: cuda where there is a GPU and the build has CUDA"},
    {"max_waiting_requests", "requests waiting before new ones are refused", 1, 1 << 20},
    {"max_waiting_prompt_tokens",
     "prompt tokens waiting before new requests are refused",
     1,
     1ull << 40},
    {"max_message_mib", "largest gRPC message accepted, MiB", 1, 1024},
    {"drain_seconds", "how long SIGTERM lets running requests go on", 1, 86400},
    {"stall_seconds", "without a step for this long, with work, the server is not ready", 1, 86400},
    {"max_connections", "connections of each port", 1, 1 << 20},
    {"sparse.mode", "dense, exact or lagged, where a request names none"},
    {"sparse.selector", "code, or bound (needs --bound-selector)"},
    {"sparse.budget", "tokens attended per KV head, at most --max-budget", 128, 1 << 20},
    {"sparse.blocks", "blocks kept by the first level", 4, UINT32_MAX},
    {"sparse.top_p", "mass cut of the selected tokens, 0 to 1; 0 or 1 = off"},
    {"max_budget", "largest budget a request may ask for", 128, 1 << 20},
    {"dense_layers", "leading layers that always attend densely", 0, 4096},
    {"dense_below", "sequences shorter than this attend densely", 0, 1 << 28},
    {"bound_selector", "also keep the index that selector bound needs"},
    {"calibration_file", "key code tables; empty = key_codes.safetensors beside the model"},
    {"log_level", "trace, debug, info, warn, error or off"},
};

const FieldRule* FindRule(const std::string& path) {
  for (const FieldRule& rule : kRules) {
    if (path == rule.path) return &rule;
  }
  return nullptr;
}

// A scalar field and the message of `root` that holds it.
struct Leaf {
  std::string path;
  Message* holder;
  const FieldDescriptor* field;
};

void CollectLeaves(const std::string& prefix, Message* message, std::vector<Leaf>& out) {
  const Reflection* reflection = message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->field(i);
    const std::string path = absl::StrCat(prefix, field->name());
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      CollectLeaves(absl::StrCat(path, "."), reflection->MutableMessage(message, field), out);
    } else {
      out.push_back({path, message, field});
    }
  }
}

std::vector<Leaf> Leaves(v1::ServerConfig* config) {
  std::vector<Leaf> out;
  CollectLeaves("", config, out);
  return out;
}

std::string FlagName(const std::string& path) { return absl::StrReplaceAll(path, {{"_", "-"}}); }

// ATTENTION_MODE_EXACT is "exact" to people.
std::string ShortEnumName(const google::protobuf::EnumValueDescriptor* value) {
  const std::string& zero = value->type()->value(0)->name();  // X_UNSPECIFIED
  const size_t prefix = zero.size() - std::string("UNSPECIFIED").size();
  return absl::AsciiStrToLower(value->name().substr(prefix));
}

std::string ValueText(const Leaf& leaf) {
  const Reflection* reflection = leaf.holder->GetReflection();
  switch (leaf.field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->GetString(*leaf.holder, leaf.field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return ShortEnumName(reflection->GetEnum(*leaf.holder, leaf.field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(*leaf.holder, leaf.field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_FLOAT:
      return absl::StrCat(reflection->GetFloat(*leaf.holder, leaf.field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(reflection->GetUInt32(*leaf.holder, leaf.field));
    case FieldDescriptor::CPPTYPE_UINT64:
    default:
      return absl::StrCat(reflection->GetUInt64(*leaf.holder, leaf.field));
  }
}

std::optional<uint64_t> Number(const Leaf& leaf) {
  const Reflection* reflection = leaf.holder->GetReflection();
  switch (leaf.field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection->GetUInt32(*leaf.holder, leaf.field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection->GetUInt64(*leaf.holder, leaf.field);
    default:
      return std::nullopt;
  }
}

absl::Status BadValue(const Leaf& leaf, const std::string& value, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("--", FlagName(leaf.path), ": '", value, "' is not ", wanted));
}

absl::Status SetEnum(const Leaf& leaf, const std::string& value) {
  const auto* type = leaf.field->enum_type();
  std::vector<std::string> names;
  for (int i = 1; i < type->value_count(); ++i) {
    names.push_back(ShortEnumName(type->value(i)));
    if (names.back() == value) {
      leaf.holder->GetReflection()->SetEnum(leaf.holder, leaf.field, type->value(i));
      return absl::OkStatus();
    }
  }
  return BadValue(leaf, value, absl::StrCat("one of ", absl::StrJoin(names, ", ")));
}

absl::Status SetLeaf(const Leaf& leaf, const std::string& value) {
  const Reflection* reflection = leaf.holder->GetReflection();
  switch (leaf.field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      reflection->SetString(leaf.holder, leaf.field, value);
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(leaf, value);
    case FieldDescriptor::CPPTYPE_BOOL: {
      bool parsed;
      if (!absl::SimpleAtob(value, &parsed)) return BadValue(leaf, value, "true or false");
      reflection->SetBool(leaf.holder, leaf.field, parsed);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_FLOAT: {
      float parsed;
      if (!absl::SimpleAtof(value, &parsed)) return BadValue(leaf, value, "a number");
      reflection->SetFloat(leaf.holder, leaf.field, parsed);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      uint32_t parsed;
      if (!absl::SimpleAtoi(value, &parsed)) {
        return BadValue(leaf, value, "a whole number from 0 to 4294967295");
      }
      reflection->SetUInt32(leaf.holder, leaf.field, parsed);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64:
    default: {
      uint64_t parsed;
      if (!absl::SimpleAtoi(value, &parsed)) return BadValue(leaf, value, "a whole number");
      reflection->SetUInt64(leaf.holder, leaf.field, parsed);
      return absl::OkStatus();
    }
  }
}

struct Flag {
  std::string name;
  std::optional<std::string> value;  // nullopt: a bool given by its name alone
};

absl::StatusOr<std::vector<Flag>> SplitFlags(const std::vector<std::string>& args) {
  std::vector<Flag> flags;
  for (size_t i = 0; i < args.size(); ++i) {
    if (!absl::StartsWith(args[i], "--")) {
      return absl::InvalidArgumentError(
          absl::StrCat("unexpected argument '", args[i], "'; flags start with --"));
    }
    const std::string body = args[i].substr(2);
    const size_t equals = body.find('=');
    if (equals != std::string::npos) {
      flags.push_back({body.substr(0, equals), body.substr(equals + 1)});
    } else if (i + 1 < args.size() && !absl::StartsWith(args[i + 1], "--")) {
      flags.push_back({body, args[++i]});
    } else {
      flags.push_back({body, std::nullopt});
    }
  }
  return flags;
}

// Keeps the first complaint of the text-format parser.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstError(std::string file) : file_(std::move(file)) {}
  void AddError(int line, int column, const std::string& message) override {
    if (text_.empty()) {
      text_ = absl::StrCat(file_, ":", line + 1, ":", column + 1, ": ", message);
    }
  }
  const std::string& text() const { return text_; }

 private:
  const std::string file_;
  std::string text_;
};

absl::Status ReadConfigFile(const std::string& path, v1::ServerConfig* config) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxConfigFileBytes);
  if (!text.ok()) return text.status();
  FirstError error(path);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(*text, config)) return absl::InvalidArgumentError(error.text());
  return absl::OkStatus();
}

absl::Status ApplyFlag(const Flag& flag, const std::vector<Leaf>& leaves) {
  const std::string name = FlagName(flag.name);
  for (const Leaf& leaf : leaves) {
    if (FlagName(leaf.path) != name) continue;
    if (flag.value.has_value()) return SetLeaf(leaf, *flag.value);
    if (leaf.field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) return SetLeaf(leaf, "true");
    return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown flag --", flag.name, "; --help lists them all"));
}

absl::Status OneOf(const char* field,
                   const std::string& value,
                   std::initializer_list<const char*> allowed) {
  for (const char* name : allowed) {
    if (value == name) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, " '", value, "' is not one of ", absl::StrJoin(allowed, ", ")));
}

absl::Status CheckRanges(const v1::ServerConfig& config) {
  v1::ServerConfig copy = config;
  for (const Leaf& leaf : Leaves(&copy)) {
    const FieldRule* rule = FindRule(leaf.path);
    const std::optional<uint64_t> value = Number(leaf);
    if (rule == nullptr || !value.has_value()) continue;
    if (*value < rule->min || *value > rule->max) {
      return absl::InvalidArgumentError(
          absl::StrCat(leaf.path, " ", *value, " is outside ", rule->min, " to ", rule->max));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSparse(const v1::ServerConfig& config) {
  const v1::SparseParams& sparse = config.sparse();
  if (!v1::AttentionMode_IsValid(sparse.mode()) || !v1::Selector_IsValid(sparse.selector())) {
    return absl::InvalidArgumentError("sparse.mode or sparse.selector holds an unknown number");
  }
  if (!(sparse.top_p() >= 0 && sparse.top_p() <= 1)) {  // also refuses NaN
    return absl::InvalidArgumentError(
        absl::StrCat("sparse.top_p ", sparse.top_p(), " is outside 0 to 1"));
  }
  if (sparse.budget() > config.max_budget()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sparse.budget ", sparse.budget(), " is more than max_budget ", config.max_budget()));
  }
  if (sparse.selector() == v1::SELECTOR_BOUND && !config.bound_selector()) {
    return absl::InvalidArgumentError("sparse.selector bound needs bound_selector");
  }
  return absl::OkStatus();
}

}  // namespace

v1::ServerConfig DefaultConfig() {
  v1::ServerConfig config;
  config.set_listen("0.0.0.0:50051");
  config.set_metrics_listen("0.0.0.0:9090");
  config.set_http_listen("none");
  config.set_metrics_compat("none");
  config.set_weights("files");
  config.set_max_sequences(32);
  config.set_max_step_tokens(1024);
  config.set_tensor_parallel(1);
  config.set_device("auto");
  config.set_max_waiting_requests(256);
  config.set_max_waiting_prompt_tokens(4194304);
  config.set_max_message_mib(16);
  config.set_drain_seconds(30);
  config.set_stall_seconds(60);
  config.set_max_connections(1024);
  v1::SparseParams& sparse = *config.mutable_sparse();
  sparse.set_mode(v1::ATTENTION_MODE_EXACT);
  sparse.set_selector(v1::SELECTOR_CODE);
  sparse.set_budget(1024);
  sparse.set_blocks(64);
  config.set_max_budget(4096);
  config.set_dense_layers(2);
  config.set_dense_below(4096);
  config.set_log_level("info");
  return config;
}

absl::StatusOr<v1::ServerConfig> LoadConfig(const std::vector<std::string>& args) {
  absl::StatusOr<std::vector<Flag>> flags = SplitFlags(args);
  if (!flags.ok()) return flags.status();
  v1::ServerConfig given;
  for (const Flag& flag : *flags) {
    if (flag.name != "config") continue;
    if (!flag.value.has_value()) return absl::InvalidArgumentError("--config needs a value");
    const absl::Status read = ReadConfigFile(*flag.value, &given);
    if (!read.ok()) return read;
  }
  const std::vector<Leaf> leaves = Leaves(&given);
  for (const Flag& flag : *flags) {
    if (flag.name == "config") continue;
    const absl::Status applied = ApplyFlag(flag, leaves);
    if (!applied.ok()) return applied;
  }
  v1::ServerConfig config = DefaultConfig();
  config.MergeFrom(given);  // copies what is set or not zero
  const absl::Status valid = ValidateConfig(config);
  if (!valid.ok()) return valid;
  return config;
}

absl::Status ValidateConfig(const v1::ServerConfig& config) {
  if (config.model().empty()) return absl::InvalidArgumentError("model is required: --model DIR");
  if (auto listen = ParseHostPort("listen", config.listen()); !listen.ok()) return listen.status();
  if (config.metrics_listen() != "none") {
    auto metrics = ParseHostPort("metrics_listen", config.metrics_listen());
    if (!metrics.ok()) return metrics.status();
  }
  if (config.http_listen() != "none") {
    auto http = ParseHostPort("http_listen", config.http_listen());
    if (!http.ok()) return http.status();
  }
  if (config.served_model_name().size() > kMaxModelNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("served_model_name has ",
                                                   config.served_model_name().size(),
                                                   " bytes; the limit is ",
                                                   kMaxModelNameBytes));
  }
  absl::Status status = OneOf("weights", config.weights(), {"files", "synthetic"});
  status.Update(OneOf("device", config.device(), {"auto", "cpu", "cuda"}));
  status.Update(OneOf("metrics_compat", config.metrics_compat(), {"none", "vllm"}));
  status.Update(
      OneOf("log_level", config.log_level(), {"trace", "debug", "info", "warn", "error", "off"}));
  status.Update(CheckRanges(config));
  status.Update(CheckSparse(config));
  return status;
}

std::string ConfigHelp() {
  v1::ServerConfig defaults = DefaultConfig();
  std::string out = absl::StrFormat(
      "  %-30s %s\n", "--config FILE", "text-format ServerConfig; flags win over it");
  for (const Leaf& leaf : Leaves(&defaults)) {
    const FieldRule* rule = FindRule(leaf.path);
    absl::StrAppendFormat(
        &out, "  %-30s %s", absl::StrCat("--", FlagName(leaf.path)), rule ? rule->help : "");
    if (rule != nullptr && rule->max != 0) {
      absl::StrAppendFormat(&out, ", %d to %d", rule->min, rule->max);
    }
    const std::string value = ValueText(leaf);
    absl::StrAppendFormat(&out, " [%s]\n", value.empty() ? "empty" : value);
  }
  return out;
}

}  // namespace asynctls
