// SPDX-License-Identifier: Apache-2.0
#include "client/line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <cstdlib>

namespace asynctls {

struct LineReader::Editor {
  EditLine* line = nullptr;
  History* history = nullptr;
  std::string prompt;
};

namespace {

char* Prompt(EditLine* line) {
  void* prompt = nullptr;
  el_get(line, EL_CLIENTDATA, &prompt);
  return static_cast<std::string*>(prompt)->data();
}

// Ctrl-C: forget what has been typed. The terminal's own handling of the key is off while editing.
unsigned char DropLine(EditLine* line, int) {
  const LineInfo* info = el_line(line);
  const auto length = info->lastchar - info->buffer;
  el_cursor(line, static_cast<int>(info->lastchar - info->cursor));
  el_deletestr(line, static_cast<int>(length));
  return CC_REFRESH;
}

std::string WithoutEnd(std::string line) {
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  return line;
}

}  // namespace

LineReader::LineReader(std::FILE* in, std::FILE* out) : in_(in) {
  if (isatty(fileno(in)) == 0 || isatty(fileno(out)) == 0) return;
  editor_ = std::make_unique<Editor>();
  editor_->history = history_init();
  HistEvent event;
  history(editor_->history, &event, H_SETSIZE, 1000);
  editor_->line = el_init("asynctls", in, out, stderr);
  el_set(editor_->line, EL_CLIENTDATA, &editor_->prompt);
  el_set(editor_->line, EL_PROMPT, Prompt);
  el_set(editor_->line, EL_EDITOR, "emacs");
  el_set(editor_->line, EL_HIST, history, editor_->history);
  el_set(editor_->line, EL_SETTY, "-d", "-isig", nullptr);
  el_set(editor_->line, EL_ADDFN, "drop-line", "forget the line", DropLine);
  el_set(editor_->line, EL_BIND, "^C", "drop-line", nullptr);
}

LineReader::~LineReader() {
  if (editor_ == nullptr) return;
  el_end(editor_->line);
  history_end(editor_->history);
}

std::optional<std::string> LineReader::Read(const std::string& prompt) {
  if (editor_ == nullptr) {
    char* text = nullptr;
    size_t size = 0;
    const ssize_t length = getline(&text, &size, in_);
    std::optional<std::string> line;
    if (length >= 0) line = WithoutEnd(std::string(text, static_cast<size_t>(length)));
    std::free(text);
    return line;
  }
  editor_->prompt = prompt;
  int length = 0;
  const char* text = el_gets(editor_->line, &length);
  if (text == nullptr || length <= 0) return std::nullopt;
  std::string line = WithoutEnd(std::string(text, static_cast<size_t>(length)));
  HistEvent event;
  if (!line.empty()) history(editor_->history, &event, H_ENTER, line.c_str());
  return line;
}

}  // namespace asynctls
