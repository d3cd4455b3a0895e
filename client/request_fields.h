// SPDX-License-Identifier: Apache-2.0
// The fields of a GenerateRequest that a user can set by name: one table behind the flags of
// `generate` and `chat` and behind `/set` in a chat. The prompt is not among them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "asynctls/v1/generation.pb.h"
#include "client/flags.h"

namespace asynctls {

// One spec per field, as flags.
const std::vector<FlagSpec>& RequestFieldSpecs();

// Sets the field `name` (as in RequestFieldSpecs) from text. `value` of a switch is "" or "on", or
// "off". Values are checked for their type here and for their range by the server. Errors:
// INVALID_ARGUMENT naming field and value; NOT_FOUND for an unknown name.
absl::Status SetRequestField(const std::string& name,
                             const std::string& value,
                             v1::GenerateRequest& request);

// Sets every field that is given. Errors: INVALID_ARGUMENT, starting with "--".
absl::Status SetRequestFields(const Flags& flags, v1::GenerateRequest& request);

}  // namespace asynctls
