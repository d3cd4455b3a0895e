// SPDX-License-Identifier: Apache-2.0
#include "client/eval.h"

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/client.h"

namespace asynctls {
namespace {

constexpr uint32_t kBlockPositions = 64;
constexpr uint32_t kAllBlocks = 1u << 20;  // more than any sequence has: level 1 lets all pass
constexpr int64_t kMaxDataBytes = int64_t{4} << 30;

absl::Status BadMode(const std::string& text, const char* why) {
  return absl::InvalidArgumentError(absl::StrCat("mode '", text, "' ", why));
}

absl::StatusOr<EvalSample> ParseSample(const std::string& line, const std::string& origin) {
  absl::StatusOr<Json> json = ParseJson(line, origin);
  if (!json.ok()) return json.status();
  for (const char* key : {"id", "task", "expected"}) {
    if (!json->is_object() || !json->contains(key) || !(*json)[key].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(origin, ": no text '", key, "'"));
    }
  }
  if (!json->contains("length") || !(*json)["length"].is_number_unsigned()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": no whole number 'length'"));
  }
  absl::StatusOr<v1::ChatMessages> chat = ParseMessages(json->value("messages", Json()), origin);
  if (!chat.ok()) return chat.status();
  EvalSample sample;
  sample.id = (*json)["id"].get<std::string>();
  sample.task = (*json)["task"].get<std::string>();
  sample.expected = (*json)["expected"].get<std::string>();
  sample.length = (*json)["length"].get<uint64_t>();
  sample.chat = *std::move(chat);
  return sample;
}

}  // namespace

absl::StatusOr<EvalMode> ParseEvalMode(const std::string& text) {
  EvalMode mode{text, {}};
  const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits('@', 1));
  const std::string& name = parts[0];
  uint32_t budget = 0;
  bool has_blocks = false;
  if (parts.size() == 2) {
    const std::vector<std::string> numbers = absl::StrSplit(parts[1], absl::MaxSplits('/', 1));
    has_blocks = numbers.size() == 2;
    uint32_t blocks = 0;
    if (!absl::SimpleAtoi(numbers[0], &budget) || budget == 0 ||
        (has_blocks && (!absl::SimpleAtoi(numbers[1], &blocks) || blocks == 0))) {
      return BadMode(text, "is not NAME@BUDGET or NAME@BUDGET/BLOCKS with whole numbers");
    }
    mode.sparse.set_budget(budget);
    if (has_blocks) mode.sparse.set_blocks(blocks);
  }
  mode.sparse.set_mode(v1::ATTENTION_MODE_EXACT);
  if (name == "level1" || name == "level2") {
    if (budget == 0 || has_blocks) return BadMode(text, "takes @BUDGET and nothing else");
    mode.sparse.set_blocks(name == "level2" ? kAllBlocks : budget / kBlockPositions);
  } else if (name == "dense") {
    if (budget != 0) return BadMode(text, "takes no budget");
    mode.sparse.set_mode(v1::ATTENTION_MODE_DENSE);
  } else if (name == "lagged") {
    mode.sparse.set_mode(v1::ATTENTION_MODE_LAGGED);
  } else if (name == "bound") {
    mode.sparse.set_selector(v1::SELECTOR_BOUND);
  } else if (name != "exact") {
    return BadMode(text, "is not one of dense, exact, lagged, bound, level1, level2");
  }
  return mode;
}

absl::StatusOr<std::vector<EvalSample>> ReadSamples(const std::string& path, uint64_t limit) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxDataBytes);
  if (!text.ok()) return text.status();
  std::vector<EvalSample> samples;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    ++line_number;
    if (limit > 0 && samples.size() == limit) break;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    auto sample = ParseSample(std::string(line), absl::StrCat(path, ":", line_number));
    if (!sample.ok()) return sample.status();
    samples.push_back(*std::move(sample));
  }
  if (samples.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no samples"));
  return samples;
}

bool IsCorrect(const std::string& answer, const std::string& expected) {
  return absl::StripAsciiWhitespace(answer) == absl::StripAsciiWhitespace(expected);
}

void Score::Add(const EvalSample& sample,
                bool correct,
                const v1::SparseParams& sparse,
                const v1::Usage& usage) {
  Count1(sample, correct);
  sparse_ = sparse;
  read_bytes_ += static_cast<double>(usage.kv_read().bytes());
  dense_bytes_ += static_cast<double>(usage.kv_read().dense_bytes());
}

void Score::AddFailure(const EvalSample& sample) {
  Count1(sample, false);
  ++failures_;
}

void Score::Count1(const EvalSample& sample, bool correct) {
  all_.Add(correct);
  by_task_[sample.task].Add(correct);
  by_length_[sample.length].Add(correct);
}

double Score::kv_read_fraction() const { return dense_bytes_ > 0 ? read_bytes_ / dense_bytes_ : 1; }

Json Score::ToJson(const EvalMode& mode) const {
  const bool dense = mode.sparse.mode() == v1::ATTENTION_MODE_DENSE;
  Json json = {{"mode", mode.name},
               {"budget", dense ? 0 : sparse_.budget()},
               {"blocks", dense ? 0 : sparse_.blocks()},
               {"accuracy", accuracy()},
               {"correct", all_.correct},
               {"samples", all_.samples},
               {"failures", failures_},
               {"by_task", Json::object()},
               {"by_length", Json::object()},
               {"kv_read_fraction", kv_read_fraction()}};
  for (const auto& [task, count] : by_task_) json["by_task"][task] = count.accuracy();
  for (const auto& [length, count] : by_length_) {
    json["by_length"][absl::StrCat(length)] = count.accuracy();
  }
  return json;
}

}  // namespace asynctls
