// SPDX-License-Identifier: Apache-2.0
// The status page: status_page.html, embedded by the build (status_page.cc.in). {{NONCE}} in it
// stands for the nonce of the answer's Content-Security-Policy.
#pragma once

#include "absl/strings/string_view.h"

namespace asynctls {

absl::string_view StatusPage();

}  // namespace asynctls
