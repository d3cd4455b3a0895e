// SPDX-License-Identifier: Apache-2.0
// The client's flag parser: "--name value", "--name=value", switches by their name alone. One list
// of specs per subcommand serves parsing and --help.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace asynctls {

struct FlagSpec {
  std::string name;         // without the dashes
  std::string placeholder;  // empty: a switch
  std::string help;
  bool repeats = false;  // may be given several times
};

class Flags {
 public:
  // Errors: INVALID_ARGUMENT naming the flag (unknown, twice, without its value).
  static absl::StatusOr<Flags> Parse(const std::vector<FlagSpec>& specs,
                                     const std::vector<std::string>& args);
  static std::string Help(const std::vector<FlagSpec>& specs);

  bool has(const std::string& name) const { return values_.contains(name); }
  // The value (the last one of a flag that repeats), or `fallback` where the flag is absent.
  std::string Text(const std::string& name, const std::string& fallback = "") const;
  // Names of the flags that were given.
  std::vector<std::string> names() const;
  // Every value, in the order given.
  std::vector<std::string> All(const std::string& name) const;
  // Errors: INVALID_ARGUMENT naming flag, value and range.
  absl::StatusOr<uint64_t> Whole(const std::string& name,
                                 uint64_t fallback,
                                 uint64_t min,
                                 uint64_t max) const;
  // Any finite number.
  absl::StatusOr<double> Real(const std::string& name, double fallback) const;
  absl::StatusOr<double> Real(const std::string& name,
                              double fallback,
                              double min,
                              double max) const;
  // Errors: INVALID_ARGUMENT naming the first absent one.
  absl::Status Require(const std::vector<std::string>& names) const;

 private:
  std::map<std::string, std::vector<std::string>> values_;
};

}  // namespace asynctls
