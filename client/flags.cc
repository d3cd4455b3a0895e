// SPDX-License-Identifier: Apache-2.0
#include "client/flags.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace asynctls {

absl::StatusOr<Flags> Flags::Parse(const std::vector<FlagSpec>& specs,
                                   const std::vector<std::string>& args) {
  Flags out;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    const size_t equals = arg.find('=');
    const std::string name = absl::StartsWith(arg, "--") ? arg.substr(2, equals - 2) : "";
    const auto spec =
        std::find_if(specs.begin(), specs.end(), [&](const FlagSpec& s) { return s.name == name; });
    if (spec == specs.end()) {
      return absl::InvalidArgumentError(absl::StrCat("unknown argument '", arg, "'"));
    }
    std::string value;
    if (spec->placeholder.empty()) {
      if (equals != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("--", name, " takes no value"));
      }
    } else if (equals != std::string::npos) {
      value = arg.substr(equals + 1);
    } else if (i + 1 < args.size()) {
      value = args[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
    }
    std::vector<std::string>& values = out.values_[name];
    if (!values.empty() && !spec->repeats) {
      return absl::InvalidArgumentError(absl::StrCat("--", name, " is given twice"));
    }
    values.push_back(value);
  }
  return out;
}

std::string Flags::Help(const std::vector<FlagSpec>& specs) {
  std::string out;
  for (const FlagSpec& spec : specs) {
    absl::StrAppendFormat(
        &out, "  %-26s %s\n", absl::StrCat("--", spec.name, " ", spec.placeholder), spec.help);
  }
  return out;
}

std::string Flags::Text(const std::string& name, const std::string& fallback) const {
  const auto found = values_.find(name);
  return found == values_.end() ? fallback : found->second.back();
}

std::vector<std::string> Flags::names() const {
  std::vector<std::string> out;
  for (const auto& [name, values] : values_) out.push_back(name);
  return out;
}

std::vector<std::string> Flags::All(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? std::vector<std::string>() : found->second;
}

absl::StatusOr<uint64_t> Flags::Whole(const std::string& name,
                                      uint64_t fallback,
                                      uint64_t min,
                                      uint64_t max) const {
  if (!has(name)) return fallback;
  uint64_t value;
  if (!absl::SimpleAtoi(Text(name), &value) || value < min || value > max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--", name, ": '", Text(name), "' is not a whole number from ", min, " to ", max));
  }
  return value;
}

absl::StatusOr<double> Flags::Real(const std::string& name, double fallback) const {
  if (!has(name)) return fallback;
  double value;
  if (!absl::SimpleAtod(Text(name), &value) || !std::isfinite(value)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, ": '", Text(name), "' is not a number"));
  }
  return value;
}

absl::StatusOr<double> Flags::Real(const std::string& name,
                                   double fallback,
                                   double min,
                                   double max) const {
  absl::StatusOr<double> value = Real(name, fallback);
  if (!value.ok() || !has(name)) return value;
  if (*value < min || *value > max) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, ": ", *value, " is outside ", min, " to ", max));
  }
  return value;
}

absl::Status Flags::Require(const std::vector<std::string>& names) const {
  for (const std::string& name : names) {
    if (!has(name)) return absl::InvalidArgumentError(absl::StrCat("--", name, " is required"));
  }
  return absl::OkStatus();
}

}  // namespace asynctls
