// SPDX-License-Identifier: Apache-2.0
// What the text tests share: the demo model's tokenizer, golden lines, and a generator of random
// text that is rich in what tokenizers get wrong.
#pragma once

#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/json.h"
#include "engine/text/tokenizer.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"

namespace asynctls {

inline std::string DemoTokenizerPath() {
  return ASYNCTLS_SOURCE_DIR "/deploy/models/demo-qwen3/tokenizer.json";
}

inline const Tokenizer& DemoTokenizer() {
  static const Tokenizer* const tokenizer = Tokenizer::Load(DemoTokenizerPath()).value().release();
  return *tokenizer;
}

// `path` is relative to the source tree.
inline std::vector<Json> ReadJsonLines(const std::string& path) {
  std::istringstream file(ReadFile(ASYNCTLS_SOURCE_DIR "/" + path).value());
  std::vector<Json> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(ParseJson(line, path).value());
  }
  return lines;
}

// A tokenizer.json with the 256 bytes, "ab" (256), "abc" (257), the special token "<s>" (258) and
// the plain one "<t>" (259), for tests that damage it.
inline Json SmallTokenizerJson() {
  Json json = ParseJson(ReadFile(DemoTokenizerPath()).value(), "demo").value();
  Json vocab = Json::object();
  for (const auto& [spelling, id] : json["model"]["vocab"].items()) {
    if (id.get<int>() < 256) vocab[spelling] = id;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  json["model"]["vocab"] = vocab;
  json["model"]["merges"] = {"a b", "ab c"};
  const Json flags = {
      {"single_word", false}, {"lstrip", false}, {"rstrip", false}, {"normalized", false}};
  json["added_tokens"] = {flags, flags};
  json["added_tokens"][0].update({{"id", 258}, {"content", "<s>"}, {"special", true}});
  json["added_tokens"][1].update({{"id", 259}, {"content", "<t>"}, {"special", false}});
  return json;
}

// Up to `max_chars` characters: words, blanks, contractions, digits, marks, scripts, emoji, and now
// and then any character at all.
inline std::string RandomText(std::mt19937& random, int max_chars) {
  static const char32_t* const kCommon =
      U"abcdefgh the THE  \n\r\t'''sStTmMrReEvVlLdD\u017f0123456789.,!?-_()<>|\u00e9\u0301\u0323"
      U"\u00a0\u2003\u3000\u4f60\u597d\u1100\u1161\u11a8\uac00\u0663\u00bd\u0928\u093c\u200d\u2028"
      U"\U0001f600\U0001f44b\U0001f3fd\u0344\u212b\u2126";
  static const size_t kCount = std::char_traits<char32_t>::length(kCommon);
  const int count = std::uniform_int_distribution<int>(0, max_chars)(random);
  std::string text;
  for (int i = 0; i < count; ++i) {
    char32_t c = kCommon[random() % kCount];
    if (random() % 8 == 0) {
      do {
        c = random() % (random() % 2 ? 0x110000 : 0x3000);
      } while (c >= 0xd800 && c < 0xe000);
    }
    AppendUtf8(c, text);
  }
  return text;
}

}  // namespace asynctls
