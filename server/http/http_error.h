// SPDX-License-Identifier: Apache-2.0
// Errors as OpenAI's API shows them: {"error": {message, type, param, code}}.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "server/http/http_call.h"

namespace asynctls {

inline constexpr int kClientClosedRequest = 499;

int HttpStatusOf(absl::StatusCode code);

// The error object of a status of the front end. Fields of asynctls.v1 go by their name in
// requests over HTTP: "sampling.top_p" is "top_p", "sparse.budget" is "asynctls.budget". INTERNAL
// shows an id; the text is in the log under it.
std::string ErrorJson(const absl::Status& status);

// An answer of that, with Retry-After where the status says when to try again.
HttpResponse ErrorResponse(const absl::Status& status);
// Of what never was a request of the front end.
HttpResponse ErrorResponse(int status, const std::string& message);

}  // namespace asynctls
