// SPDX-License-Identifier: Apache-2.0
#include "client/line_reader.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <termios.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace asynctls {
namespace {

TEST(LineReaderTest, ReadsPlainLinesFromAFile) {
  std::FILE* file = std::tmpfile();
  std::fputs("one\r\n\nthree", file);
  std::rewind(file);
  LineReader reader(file, stdout);
  EXPECT_FALSE(reader.editing());
  EXPECT_EQ(reader.Read("> "), "one");
  EXPECT_EQ(reader.Read("> "), "");
  EXPECT_EQ(reader.Read("> "), "three");
  EXPECT_EQ(reader.Read("> "), std::nullopt);
  std::fclose(file);
}

// A terminal whose user types.
class Typist {
 public:
  Typist() {
    int slave = -1;
    EXPECT_EQ(openpty(&master_, &slave, nullptr, nullptr, nullptr), 0);
    terminal_ = fdopen(slave, "r+");
  }
  ~Typist() {
    std::fclose(terminal_);
    close(master_);
  }
  std::FILE* terminal() { return terminal_; }
  void Type(const std::string& keys) {
    EXPECT_EQ(write(master_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }
  // Waits until the reader has shown `prompt` and then put the terminal into its own mode; before
  // that, the terminal itself would take Ctrl-C and Ctrl-D.
  void TypeAfter(const std::string& prompt, const std::string& keys) {
    std::string shown;
    char c;
    while (shown.find(prompt) == std::string::npos && read(master_, &c, 1) == 1) shown += c;
    termios mode{};
    do {
      tcgetattr(master_, &mode);
    } while ((mode.c_lflag & ICANON) != 0);
    Type(keys);
  }

 private:
  int master_ = -1;
  std::FILE* terminal_ = nullptr;
};

TEST(LineReaderTest, EditsLinesOnATerminal) {
  setenv("TERM", "vt100", 1);
  Typist typist;
  LineReader reader(typist.terminal(), typist.terminal());
  ASSERT_TRUE(reader.editing());
  typist.Type("first\nxy\x02z\x01w\n\x10\x10\n");  // a terminal keeps what is typed ahead
  EXPECT_EQ(reader.Read("> "), "first");
  EXPECT_EQ(reader.Read("> "), "wxzy");   // Ctrl-B, Ctrl-A
  EXPECT_EQ(reader.Read("> "), "first");  // two lines up in the history
}

TEST(LineReaderTest, CtrlCDropsTheLineAndCtrlDEndsTheInput) {
  setenv("TERM", "vt100", 1);
  Typist typist;
  LineReader reader(typist.terminal(), typist.terminal());
  std::thread first([&] { typist.TypeAfter("one> ", "wrong\x03right\n"); });
  EXPECT_EQ(reader.Read("one> "), "right");
  first.join();
  std::thread second([&] { typist.TypeAfter("two> ", "\x04"); });
  EXPECT_EQ(reader.Read("two> "), std::nullopt);
  second.join();
}

}  // namespace
}  // namespace asynctls
