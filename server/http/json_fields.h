// SPDX-License-Identifier: Apache-2.0
// JsonFields: the members of one JSON object of a request, read by name and type. A member that is
// null is absent. What nobody reads is an error, so nothing asked for is silently ignored.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace asynctls {

// Parses a request's body, which must be one object. Errors: INVALID_ARGUMENT.
absl::StatusOr<Json> ParseBody(const std::string& body);

// The readers answer nullopt where the member is absent or wrong; the first error is kept for
// Finish. Errors are FieldErrors with the member's path.
class JsonFields {
 public:
  // `path` is put before names, as in "messages[2]." ; empty for the body. `object` outlives this.
  // Not an object: an error, and no members.
  JsonFields(const Json& object, std::string path);

  std::optional<std::string> String(const char* name);
  std::optional<bool> Bool(const char* name);
  // Finite; what a float cannot hold becomes infinite.
  std::optional<float> Float(const char* name);
  // 5 is one, 5.0 is not.
  std::optional<int64_t> Integer(const char* name, int64_t low, int64_t high);
  std::optional<uint32_t> Unsigned(const char* name) {
    const auto value = Integer(name, 0, std::numeric_limits<uint32_t>::max());
    return value.has_value() ? std::optional<uint32_t>(*value) : std::nullopt;
  }
  // -2^63 to 2^64 - 1, negative ones as their two's complement.
  std::optional<uint64_t> Seed(const char* name);
  // Null where absent; of any type.
  const Json* Any(const char* name);
  // Null where absent or another type.
  const Json* Object(const char* name);
  const Json* Array(const char* name);

  // Records an error about a member; the first one counts.
  void Fail(const char* name, const std::string& what);
  // Records that a member, or a value of it, asks for what this server does not do; `value` begins
  // with a space or is empty.
  void Unsupported(const char* name, const std::string& value = "");
  void Fail(const absl::Status& status) { status_.Update(status); }

  std::string Path(const char* name) const { return path_ + name; }
  // The first error, or one naming a member that nobody asked for.
  absl::Status Finish() const;

 private:
  void WrongType(const char* name, const char* expected, const Json& value);

  const Json& object_;
  const std::string path_;
  std::set<std::string> known_;
  absl::Status status_;
};

}  // namespace asynctls
