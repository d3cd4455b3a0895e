// SPDX-License-Identifier: Apache-2.0
// Encoding speed on one core, on generated text of several kinds and on hostile text, beside what
// the machine's memory copies. tokenizer_baseline.py measures HuggingFace's library on the same
// files (--write) and its figure goes in with --hf-mb-s.
//
//   tokenizer_bench [--tokenizer F] [--text F] [--write DIR] [--hf-mb-s X] [--seconds S]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/json.h"
#include "engine/text/tokenizer.h"

namespace asynctls {
namespace {

struct Options {
  std::string tokenizer = ASYNCTLS_SOURCE_DIR "/deploy/models/demo-qwen3/tokenizer.json";
  std::string text, write_dir;
  double hf_mb_s = 0;
  double seconds = 1;
};

struct Text {
  std::string name, data;
};

// English-like prose: words by Zipf's law, the most frequent ones real, the rest made of syllables,
// so that the number of different words grows with the text as it does in print.
class Prose {
 public:
  Prose() {
    std::istringstream common(
        "the of and to a in that is was he for it with as his on be at by had not are but from or "
        "have an they which one you were all her she there would their we him been has when who "
        "will no more if out so up said what its about than into them can only other time new some "
        "could these two may first then do any like my now over such our man me even most made "
        "after also did many off before must well back through years much where your way down "
        "should because long each just state people those too mister how little good world make "
        "very year still see own work men day get here old life both between being under three "
        "never know same last another while us might great go come since against right came take "
        "used himself few house American use place during high without again home around small "
        "however found Mrs thought went say part once general upon school every");
    for (std::string word; common >> word;) words_.push_back(word);
    static constexpr const char* kSyllables[] = {
        "an",  "ter", "ment", "con", "pro", "ing", "re", "ta",   "ver", "li",  "mo", "sta",
        "per", "en",  "tion", "cal", "ri",  "de",  "so", "ness", "mar", "ble", "ex", "form"};
    while (words_.size() < 30000) {
      std::string word;
      for (uint32_t n = 2 + random_() % 3; n > 0; --n) word += kSyllables[random_() % 24];
      words_.push_back(word);
    }
  }

  std::string Sentence() {
    const uint32_t count = 5 + random_() % 18;
    std::string text;
    for (uint32_t i = 0; i < count; ++i) {
      std::string word = Word();
      if (i == 0) word[0] = static_cast<char>(std::toupper(word[0]));
      text += (i == 0 ? "" : " ") + word;
      if (i + 1 < count && random_() % 12 == 0) text += random_() % 4 ? "," : " -";
      if (random_() % 40 == 0) text += " " + std::to_string(random_() % 3000);
      if (random_() % 50 == 0) text += "'s";
    }
    return text + (random_() % 10 ? "." : "?");
  }

  uint32_t Random() { return static_cast<uint32_t>(random_()); }

 private:
  // Rank k with probability about 1/k.
  const std::string& Word() {
    const double u = random_() / 4294967296.0;
    return words_[static_cast<size_t>(std::pow(static_cast<double>(words_.size()), u)) - 1];
  }

  std::mt19937 random_{20261125};
  std::vector<std::string> words_;
};

std::string English(size_t bytes) {
  Prose prose;
  std::string text;
  while (text.size() < bytes) text += prose.Sentence() + (prose.Random() % 6 ? " " : "\n\n");
  return text;
}

// Prose, code, other scripts and the golden lines, line by line.
std::string Mixed(size_t bytes) {
  std::vector<std::string> lines = {
      "    for (int i = 0; i < count; ++i) {\n        sum += values[i] * weights[i];\n    }",
      "{\"name\": \"lantern\", \"id\": 48213, \"tags\": [\"a\", \"b\"], \"ok\": true}",
      "def normalize(x, eps=1e-6):\n    return x / (x.norm(dim=-1, keepdim=True) + eps)",
      "| layer | recall | bytes | ratio |\n|---|---:|---:|---|",
      "https://example.com/path/to/page?query=value&other=1#section",
      "Поэтому каждый запрос читает только небольшую часть памяти.",
      "每个请求只读取一小部分缓存，因此长文本也能很快得到回答。",
      "これは長い文書についての質問です。",
      "La r\u00e9ponse d\u00e9pend de la derni\u00e8re page, \u00e9crite \u00e0 la main."};
  std::istringstream goldens(
      ReadFile(ASYNCTLS_SOURCE_DIR "/tests/golden/tokenizer/encode.jsonl").value());
  for (std::string line; std::getline(goldens, line);) {
    lines.push_back(ParseJson(line, "encode.jsonl").value()["text"].get<std::string>());
  }
  Prose prose;
  std::string text;
  while (text.size() < bytes) {
    for (int i = 0; i < 3; ++i) text += prose.Sentence() + " ";
    text += "\n" + lines[prose.Random() % (prose.Random() % 2 ? 9 : lines.size())] + "\n";
  }
  return text;
}

std::string Repeat(absl::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text.append(unit.data(), unit.size());
  return text;
}

std::vector<Text> MakeTexts(const Options& options) {
  if (!options.text.empty()) return {{options.text, ReadFile(options.text).value()}};
  constexpr size_t kMiB = 1 << 20;
  std::string word;
  std::mt19937 random(1);
  while (word.size() < kMiB) word += static_cast<char>('a' + random() % 26);
  return {{"english", English(8 * kMiB)},
          {"mixed", Mixed(8 * kMiB)},
          {"chinese", Repeat("每个请求只读取一小部分缓存，因此长文本也能很快得到回答。", kMiB)},
          {"spaces", std::string(10 * kMiB, ' ')},
          {"one_word", word},
          {"one_letter", std::string(kMiB, 'a')},
          {"marks", Repeat("\u0323\u0301", kMiB)},
          {"almost_special", Repeat("<|im_start|", kMiB)}};
}

// Processor time, because the figure is per core and the machine may have other work.
double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Runs `once` for at least `seconds`, at least 3 times; returns the shortest time.
template <class F>
double BestTime(double seconds, F&& once) {
  double best = 1e30;
  const double start = CpuSeconds();
  for (int runs = 0; runs < 3 || CpuSeconds() - start < seconds; ++runs) {
    const double begin = CpuSeconds();
    once();
    best = std::min(best, CpuSeconds() - begin);
  }
  return best;
}

double CopyBytesPerSecond(double seconds) {
  const std::string from(64 << 20, 'x');
  std::string to(from.size(), 'y');
  volatile char sink = 0;
  const double time = BestTime(seconds, [&] {
    std::memcpy(to.data(), from.data(), from.size());
    sink = to[from.size() / 2];
  });
  return static_cast<double>(from.size()) / time;
}

int Run(const Options& options) {
  auto tokenizer = Tokenizer::Load(options.tokenizer);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  const double copy = CopyBytesPerSecond(options.seconds / 4);
  std::printf(
      "one core; memcpy %.1f GB/s; vocabulary %u\n", copy / 1e9, (*tokenizer)->vocab_size());
  std::printf("%-16s %10s %10s %9s %12s %9s\n",
              "text",
              "bytes",
              "tokens",
              "MB/s",
              "of memcpy",
              options.hf_mb_s > 0 ? "x HF" : "");
  for (const Text& text : MakeTexts(options)) {
    if (!options.write_dir.empty()) {
      std::ofstream(options.write_dir + "/" + text.name + ".txt", std::ios::binary) << text.data;
    }
    size_t tokens = 0;
    const double time = BestTime(
        options.seconds, [&] { tokens = (*tokenizer)->Encode(text.data, true).value().size(); });
    const double rate = static_cast<double>(text.data.size()) / time;
    std::printf("%-16s %10zu %10zu %9.1f %11.2f%%",
                text.name.c_str(),
                text.data.size(),
                tokens,
                rate / 1e6,
                100 * rate / copy);
    if (options.hf_mb_s > 0) std::printf(" %8.1fx", rate / 1e6 / options.hf_mb_s);
    std::printf("\n");
  }
  return 0;
}

}  // namespace
}  // namespace asynctls

int main(int argc, char** argv) {
  asynctls::Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (value.empty()) {
      std::cerr << flag << " needs a value\n";
      return 2;
    }
    if (flag == "--tokenizer")
      options.tokenizer = value;
    else if (flag == "--text")
      options.text = value;
    else if (flag == "--write")
      options.write_dir = value;
    else if (flag == "--hf-mb-s")
      options.hf_mb_s = std::atof(value.c_str());
    else if (flag == "--seconds")
      options.seconds = std::atof(value.c_str());
    else {
      std::cerr << "unknown flag " << flag << "\n";
      return 2;
    }
  }
  return asynctls::Run(options);
}
