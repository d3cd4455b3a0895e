// SPDX-License-Identifier: Apache-2.0
#include "client/request_fields.h"

#include <cstdint>
#include <functional>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace asynctls {
namespace {

using Setter = std::function<absl::Status(const std::string& value, v1::GenerateRequest&)>;

struct Field {
  FlagSpec spec;
  Setter set;
};

absl::Status Bad(const std::string& value, const char* expected) {
  return absl::InvalidArgumentError(absl::StrCat("'", value, "' is not ", expected));
}

absl::Status Parse(const std::string& text, uint32_t& out) {
  return absl::SimpleAtoi(text, &out) ? absl::OkStatus()
                                      : Bad(text, "a whole number from 0 to 4294967295");
}
absl::Status Parse(const std::string& text, uint64_t& out) {
  return absl::SimpleAtoi(text, &out) ? absl::OkStatus() : Bad(text, "a whole number from 0");
}
absl::Status Parse(const std::string& text, int32_t& out) {
  return absl::SimpleAtoi(text, &out) ? absl::OkStatus() : Bad(text, "a whole number");
}
absl::Status Parse(const std::string& text, float& out) {
  return absl::SimpleAtof(text, &out) ? absl::OkStatus() : Bad(text, "a number");
}
absl::Status Parse(const std::string& text, bool& out) {
  out = text.empty() || text == "on";
  return out || text == "off" ? absl::OkStatus() : Bad(text, "on or off");
}

// A setter of one scalar of one sub-message.
template <class Part, class Value>
Setter Scalar(Part* (v1::GenerateRequest::*part)(), void (Part::*set)(Value)) {
  return [part, set](const std::string& text, v1::GenerateRequest& request) {
    Value value{};
    const absl::Status status = Parse(text, value);
    if (status.ok()) ((request.*part)()->*set)(value);
    return status;
  };
}

absl::Status SetMode(const std::string& text, v1::GenerateRequest& request) {
  v1::AttentionMode mode;
  const std::string name = absl::StrCat("ATTENTION_MODE_", absl::AsciiStrToUpper(text));
  if (!v1::AttentionMode_Parse(name, &mode) || mode == v1::ATTENTION_MODE_UNSPECIFIED) {
    return Bad(text, "dense, exact or lagged");
  }
  request.mutable_sparse()->set_mode(mode);
  return absl::OkStatus();
}

absl::Status SetSelector(const std::string& text, v1::GenerateRequest& request) {
  if (text != "code" && text != "bound") return Bad(text, "code or bound");
  request.mutable_sparse()->set_selector(text == "code" ? v1::SELECTOR_CODE : v1::SELECTOR_BOUND);
  return absl::OkStatus();
}

// ID:VALUE,ID:VALUE..
absl::Status SetLogitBias(const std::string& text, v1::GenerateRequest& request) {
  for (const std::string& item : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const std::vector<std::string> pair = absl::StrSplit(item, ':');
    uint32_t id;
    float bias;
    if (pair.size() != 2 || !absl::SimpleAtoi(pair[0], &id) || !absl::SimpleAtof(pair[1], &bias)) {
      return Bad(item, "ID:VALUE");
    }
    (*request.mutable_sampling()->mutable_logit_bias())[id] = bias;
  }
  return absl::OkStatus();
}

absl::Status SetStopIds(const std::string& text, v1::GenerateRequest& request) {
  for (const std::string& item : std::vector<std::string>(absl::StrSplit(text, ','))) {
    uint32_t id;
    const absl::Status status = Parse(item, id);
    if (!status.ok()) return status;
    request.mutable_stopping()->add_stop_token_ids(id);
  }
  return absl::OkStatus();
}

// N: the chosen tokens' and, from 1 up, those of the N likeliest.
absl::Status SetLogProbs(const std::string& text, v1::GenerateRequest& request) {
  uint32_t top;
  const absl::Status status = Parse(text, top);
  if (!status.ok()) return status;
  request.mutable_response()->set_log_probs(true);
  request.mutable_response()->set_token_ids(true);
  request.mutable_response()->set_top_log_probs(top);
  return absl::OkStatus();
}

const std::vector<Field>& Fields() {
  using R = v1::GenerateRequest;
  using S = v1::Sampling;
  using T = v1::Stopping;
  using P = v1::Sparse;
  using O = v1::ResponseOptions;
  const auto sampling = &R::mutable_sampling;
  const auto stopping = &R::mutable_stopping;
  const auto sparse = &R::mutable_sparse;
  const auto response = &R::mutable_response;
  static const std::vector<Field> fields = {
      {{"mode", "M", "dense, exact or lagged (the server's default)"}, SetMode},
      {{"selector", "S", "code or bound"}, SetSelector},
      {{"budget", "N", "tokens attended per KV head"}, Scalar(sparse, &P::set_budget)},
      {{"blocks", "N", "blocks kept by the first level"}, Scalar(sparse, &P::set_blocks)},
      {{"mass", "X", "stop selecting at this share of the attention mass, 0 to 1"},
       Scalar(sparse, &P::set_top_p)},
      {{"tail", "N", "last prompt tokens that go through the decode path"},
       Scalar(sparse, &P::set_tail)},
      {{"max-tokens", "N", "longest reply"}, Scalar(stopping, &T::set_max_tokens)},
      {{"min-tokens", "N", "shortest reply: no end before this"},
       Scalar(stopping, &T::set_min_tokens)},
      {{"ignore-eos", "", "end tokens do not end the reply"}, Scalar(stopping, &T::set_ignore_eos)},
      {{"stop", "TEXT", "ends the reply; may be repeated", true},
       [](const std::string& text, R& request) {
         request.mutable_stopping()->add_stop(text);
         return absl::OkStatus();
       }},
      {{"stop-ids", "ID,..", "token ids that end the reply"}, SetStopIds},
      {{"include-stop", "", "the stop text is part of the reply"},
       Scalar(stopping, &T::set_include_stop)},
      {{"temperature", "X", "0 = greedy"}, Scalar(sampling, &S::set_temperature)},
      {{"top-k", "N", "sample among the N likeliest; 0 = off"}, Scalar(sampling, &S::set_top_k)},
      {{"top-p", "X", "sample among the likeliest of this mass"}, Scalar(sampling, &S::set_top_p)},
      {{"min-p", "X", "drop what is less likely than X times the best"},
       Scalar(sampling, &S::set_min_p)},
      {{"seed", "N", "same seed, same reply"}, Scalar(sampling, &S::set_seed)},
      {{"presence-penalty", "X", "off the logit of ids already generated, -2 to 2"},
       Scalar(sampling, &S::set_presence_penalty)},
      {{"frequency-penalty", "X", "the same, times their count, -2 to 2"},
       Scalar(sampling, &S::set_frequency_penalty)},
      {{"repetition-penalty", "X", "divides logits of ids seen; 1 = off"},
       Scalar(sampling, &S::set_repetition_penalty)},
      {{"logit-bias", "ID:X,..", "added to logits, -100 to 100; may be repeated", true},
       SetLogitBias},
      {{"n", "N", "replies to the one prompt"}, Scalar(sampling, &S::set_n)},
      {{"logprobs", "N", "log-probabilities, with those of the N likeliest"}, SetLogProbs},
      {{"prompt-logprobs", "N", "the same of the prompt's tokens"},
       Scalar(response, &O::set_prompt_log_probs)},
      {{"keep-special", "", "special tokens are part of the text"},
       [](const std::string& text, R& request) {
         bool keep = false;
         const absl::Status status = Parse(text, keep);
         if (status.ok()) request.mutable_response()->set_skip_special_tokens(!keep);
         return status;
       }},
      {{"priority", "N", "-100 to 100; higher is admitted first"},
       [](const std::string& text, R& request) {
         int32_t priority = 0;
         const absl::Status status = Parse(text, priority);
         if (status.ok()) request.set_priority(priority);
         return status;
       }},
      {{"cache-salt", "TEXT", "shares cached prefixes only with the same salt"},
       [](const std::string& text, R& request) {
         request.set_cache_salt(text);
         return absl::OkStatus();
       }},
      {{"request-id", "TEXT", "[chosen by the server]"},
       [](const std::string& text, R& request) {
         request.set_request_id(text);
         return absl::OkStatus();
       }},
  };
  return fields;
}

}  // namespace

const std::vector<FlagSpec>& RequestFieldSpecs() {
  static const std::vector<FlagSpec> specs = [] {
    std::vector<FlagSpec> out;
    for (const Field& field : Fields()) out.push_back(field.spec);
    return out;
  }();
  return specs;
}

absl::Status SetRequestField(const std::string& name,
                             const std::string& value,
                             v1::GenerateRequest& request) {
  for (const Field& field : Fields()) {
    if (field.spec.name != name) continue;
    const absl::Status status = field.set(value, request);
    if (status.ok()) return status;
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", status.message()));
  }
  return absl::NotFoundError(absl::StrCat("no field '", name, "'"));
}

absl::Status SetRequestFields(const Flags& flags, v1::GenerateRequest& request) {
  for (const FlagSpec& spec : RequestFieldSpecs()) {
    for (const std::string& value : flags.All(spec.name)) {
      const absl::Status status = SetRequestField(spec.name, value, request);
      if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat("--", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace asynctls
