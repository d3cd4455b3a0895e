// SPDX-License-Identifier: Apache-2.0
// LineReader: lines from a terminal, with editing and history (libedit), or from anything else as
// they are. Not thread-safe.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

namespace asynctls {

class LineReader {
 public:
  // Both files stay the caller's. Editing is on where both are terminals.
  LineReader(std::FILE* in, std::FILE* out);
  ~LineReader();
  LineReader(const LineReader&) = delete;

  bool editing() const { return editor_ != nullptr; }
  // The next line without its end; absent at the end of the input (Ctrl-D on an empty line). The
  // prompt is shown only where lines are edited; Ctrl-C there drops what has been typed.
  std::optional<std::string> Read(const std::string& prompt);

 private:
  struct Editor;
  std::FILE* in_;
  std::unique_ptr<Editor> editor_;
};

}  // namespace asynctls
