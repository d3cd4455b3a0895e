// SPDX-License-Identifier: Apache-2.0
// TokenizerArchive: the files a client needs to tokenize for itself, as a zip archive (stored, not
// compressed). Made when first asked for, then kept.
#pragma once

#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace asynctls {

class TokenizerArchive {
 public:
  struct Content {
    std::string zip;
    std::string sha256;  // of `zip`, in hex
  };

  explicit TokenizerArchive(std::string model_dir) : model_dir_(std::move(model_dir)) {}

  // As long as this lives. Reads some MB the first time. Any thread. Errors: FAILED_PRECONDITION
  // where the folder holds no tokenizer.
  absl::StatusOr<const Content*> Get();

 private:
  const std::string model_dir_;
  std::mutex mu_;  // guards what follows; once there, it does not change
  std::optional<Content> content_;
};

}  // namespace asynctls
