// SPDX-License-Identifier: Apache-2.0
#include "server/http/json_fields.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

const Json& EmptyObject() {
  static const Json empty = Json::object();
  return empty;
}

}  // namespace

absl::StatusOr<Json> ParseBody(const std::string& body) {
  absl::StatusOr<Json> json = ParseJson(body, "the body");
  if (!json.ok()) return WithReason(json.status(), "INVALID_JSON");
  if (!json->is_object()) {
    return WithReason(absl::InvalidArgumentError(
                          absl::StrCat("the body must be a JSON object, not ", json->type_name())),
                      "INVALID_JSON");
  }
  return json;
}

JsonFields::JsonFields(const Json& object, std::string path)
    : object_(object.is_object() ? object : EmptyObject()), path_(std::move(path)) {
  if (object.is_object()) return;
  const std::string self = path_.empty() ? "the body" : path_.substr(0, path_.size() - 1);
  Fail(InvalidField(self, " must be an object, not ", object.type_name()));
}

const Json* JsonFields::Any(const char* name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void JsonFields::WrongType(const char* name, const char* expected, const Json& value) {
  Fail(name, absl::StrCat(" must be ", expected, ", not ", value.type_name()));
}

std::optional<std::string> JsonFields::String(const char* name) {
  const Json* value = Any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  WrongType(name, "a string", *value);
  return std::nullopt;
}

std::optional<bool> JsonFields::Bool(const char* name) {
  const Json* value = Any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  WrongType(name, "a boolean", *value);
  return std::nullopt;
}

std::optional<float> JsonFields::Float(const char* name) {
  const Json* value = Any(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    WrongType(name, "a number", *value);
    return std::nullopt;
  }
  const double number = value->get<double>();
  if (std::abs(number) <= std::numeric_limits<float>::max()) return static_cast<float>(number);
  return std::copysign(std::numeric_limits<float>::infinity(),
                       static_cast<float>(number > 0) - 0.5f);
}

std::optional<int64_t> JsonFields::Integer(const char* name, int64_t low, int64_t high) {
  const Json* value = Any(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    WrongType(name, "an integer", *value);
    return std::nullopt;
  }
  const bool beyond =
      value->is_number_unsigned() &&
      value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!beyond && value->get<int64_t>() >= low && value->get<int64_t>() <= high) {
    return value->get<int64_t>();
  }
  Fail(name, absl::StrCat(" ", value->dump(), " is outside ", low, " to ", high));
  return std::nullopt;
}

std::optional<uint64_t> JsonFields::Seed(const char* name) {
  const Json* value = Any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  if (value->is_number_integer()) return static_cast<uint64_t>(value->get<int64_t>());
  WrongType(name, "an integer", *value);
  return std::nullopt;
}

const Json* JsonFields::Object(const char* name) {
  const Json* value = Any(name);
  if (value == nullptr || value->is_object()) return value;
  WrongType(name, "an object", *value);
  return nullptr;
}

const Json* JsonFields::Array(const char* name) {
  const Json* value = Any(name);
  if (value == nullptr || value->is_array()) return value;
  WrongType(name, "an array", *value);
  return nullptr;
}

void JsonFields::Fail(const char* name, const std::string& what) {
  status_.Update(InvalidField(Path(name), what));
}

// Not UNIMPLEMENTED: clients of OpenAI's API try again what is answered with 5xx.
void JsonFields::Unsupported(const char* name, const std::string& value) {
  status_.Update(WithReason(InvalidField(Path(name), value, " is not supported by this server"),
                            "UNSUPPORTED_FIELD"));
}

absl::Status JsonFields::Finish() const {
  if (!status_.ok()) return status_;
  for (const auto& [name, value] : object_.items()) {
    if (known_.count(name) > 0 || value.is_null()) continue;
    return InvalidField(path_ + name.substr(0, 64), " is unknown, or not supported by this server");
  }
  return absl::OkStatus();
}

}  // namespace asynctls
