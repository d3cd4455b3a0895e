// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/engine/text/text_testing.h"

namespace asynctls {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The error after `change` was done to a file that is good without it.
std::string ErrorAfter(const std::function<void(Json&)>& change) {
  Json json = SmallTokenizerJson();
  change(json);
  const auto file = ParseTokenizerFile(json.dump(), "small.json");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(file.status().message());
  EXPECT_EQ(message.find("small.json: "), 0u);
  return message;
}

TEST(TokenizerFileTest, ReadsASmallFile) {
  const auto file = ParseTokenizerFile(SmallTokenizerJson().dump(), "small.json");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->spellings.size(), 260u);
  EXPECT_EQ(file->bytes[file->byte_ids[0]], std::string(1, '\0'));
  EXPECT_EQ(file->bytes[256], "ab");
  EXPECT_EQ(file->merges.size(), 2u);
  ASSERT_EQ(file->added.size(), 2u);
  EXPECT_TRUE(file->added[0].special);
}

TEST(TokenizerFileTest, BothSpellingsOfMergesMeanTheSame) {
  Json json = SmallTokenizerJson();
  json["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"})});
  const auto pairs = Tokenizer::Parse(json.dump(), "x").value();
  const auto strings = Tokenizer::Parse(SmallTokenizerJson().dump(), "x").value();
  EXPECT_EQ(pairs->Encode("abcab", true).value(), strings->Encode("abcab", true).value());
  EXPECT_EQ(pairs->Encode("abcab", true).value(), (std::vector<uint32_t>{257, 256}));
}

TEST(TokenizerFileTest, RefusesWhatIsNotImplementedNamingTheField) {
  const std::pair<std::function<void(Json&)>, const char*> cases[] = {
      {[](Json& j) { j["version"] = "2.0"; }, "version"},
      {[](Json& j) {
         j["truncation"] = {{"max_length", 5}};
       },
       "truncation"},
      {[](Json& j) {
         j["padding"] = {{"x", 1}};
       },
       "padding"},
      {[](Json& j) { j["normalizer"] = nullptr; }, "normalizer.type"},
      {[](Json& j) { j["normalizer"]["type"] = "NFKC"; }, "normalizer.type: is \"NFKC\""},
      {[](Json& j) {
         j["pre_tokenizer"] = {{"type", "ByteLevel"}};
       },
       "pre_tokenizer.type"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(0); }, "pretokenizers"},
      {[](Json& j) {
         j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = R"(\p{N}{1,3})";
       },
       "pre_tokenizer.pretokenizers[0]"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["invert"] = true; },
       "pre_tokenizer.pretokenizers[0]"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; },
       "pre_tokenizer.pretokenizers[1].use_regex"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][1].erase("add_prefix_space"); },
       "pre_tokenizer.pretokenizers[1].add_prefix_space"},
      {[](Json& j) {
         j["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       "post_processor.type"},
      {[](Json& j) { j["decoder"]["type"] = "WordPiece"; }, "decoder.type"},
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, "model.type"},
      {[](Json& j) { j["model"]["dropout"] = 0.1; }, "model.dropout"},
      {[](Json& j) { j["model"]["unk_token"] = "<unk>"; }, "model.unk_token"},
      {[](Json& j) { j["model"]["byte_fallback"] = true; }, "model.byte_fallback"},
      {[](Json& j) { j["model"]["ignore_merges"] = true; }, "model.ignore_merges"},
      {[](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "model.end_of_word_suffix"},
      {[](Json& j) { j["added_tokens"][0]["lstrip"] = true; }, "added_tokens[0].lstrip"},
      {[](Json& j) { j["added_tokens"][1]["normalized"] = true; }, "added_tokens[1].normalized"},
  };
  for (const auto& [change, field] : cases) EXPECT_THAT(ErrorAfter(change), HasSubstr(field));
}

TEST(TokenizerFileTest, RefusesBadVocabulariesNamingTheEntry) {
  const std::pair<std::function<void(Json&)>, const char*> cases[] = {
      {[](Json& j) { j["model"]["vocab"]["ab"] = 3; }, "is already that of"},
      {[](Json& j) { j["model"]["vocab"]["ab"] = -1; }, "model.vocab['ab']"},
      {[](Json& j) { j["model"]["vocab"]["ab"] = "7"; }, "model.vocab['ab']"},
      {[](Json& j) { j["model"]["vocab"]["ab"] = 1 << 20; }, "over the limit of 1048575"},
      {[](Json& j) { j["model"]["vocab"].erase("A"); }, "no token for byte 65"},
      {[](Json& j) { j["model"]["vocab"][""] = 300; }, "a token of 0 bytes"},
      {[](Json& j) { j["model"]["vocab"][std::string(5000, 'x')] = 300; }, "limits are 1 and 4096"},
      {[](Json& j) { j["model"]["vocab"] = Json::array(); }, "model.vocab"},
      {[](Json& j) { j["model"].erase("vocab"); }, "model.vocab"},
      {[](Json& j) { j["model"]["merges"][1] = "ab zzz"; }, "model.merges[1]: 'zzz' is not in"},
      {[](Json& j) { j["model"]["merges"][0] = "a c"; }, "model.merges[0]: 'ac' is not in"},
      {[](Json& j) { j["model"]["merges"][0] = "abc"; }, "model.merges[0]: is not a pair"},
      {[](Json& j) {
         j["model"]["merges"][0] = {"a", "b", "c"};
       },
       "model.merges[0]"},
      {[](Json& j) {
         j["model"]["merges"][0] = {"a", 1};
       },
       "model.merges[0]"},
      {[](Json& j) { j["model"]["merges"] = 5; }, "model.merges"},
      {[](Json& j) { j["added_tokens"][0]["id"] = 5; }, "added_tokens[0]"},
      {[](Json& j) { j["added_tokens"][0]["content"] = "ab"; }, "in model.vocab"},
      {[](Json& j) { j["added_tokens"][0]["content"] = ""; }, "added_tokens[0].content"},
      {[](Json& j) { j["added_tokens"][0]["content"] = std::string(257, 'x'); }, "1 to 256"},
      {[](Json& j) { j["added_tokens"][1].erase("special"); }, "added_tokens[1].special"},
      {[](Json& j) { j["added_tokens"][1].erase("id"); }, "added_tokens[1].id"},
      {[](Json& j) { j["added_tokens"][1] = 7; }, "added_tokens[1]"},
      {[](Json& j) { j["added_tokens"] = 7; }, "added_tokens"},
      {[](Json& j) { j = Json::array(); }, "not a JSON object"},
  };
  for (const auto& [change, what] : cases) EXPECT_THAT(ErrorAfter(change), HasSubstr(what));
}

TEST(TokenizerFileTest, NamesTheByteOfASyntaxError) {
  const auto file = ParseTokenizerFile("{\"model\": ", "broken.json");
  EXPECT_THAT(file.status().message(), AllOf(HasSubstr("broken.json"), HasSubstr("byte")));
}

TEST(TokenizerFileTest, AnAddedTokenMayRepeatAVocabularyEntry) {
  Json json = SmallTokenizerJson();
  json["added_tokens"][1]["content"] = "abc";
  json["added_tokens"][1]["id"] = 257;
  const auto tokenizer = Tokenizer::Parse(json.dump(), "x").value();
  EXPECT_EQ(tokenizer->Encode("xabcx", true).value()[1], 257u);
}

// Bytes changed, dropped, doubled at random: never a crash, and what still loads still works.
TEST(TokenizerFileTest, DamagedFilesAreRefusedOrWork) {
  const std::string good = SmallTokenizerJson().dump();
  std::mt19937 random(41);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    for (uint32_t n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % bad.size();
      const size_t length = random() % 20;
      switch (random() % 4) {
        case 0:
          bad[at] = static_cast<char>(random());
          break;
        case 1:
          bad[at] = "{}[]\",:0159-eEtfn \\"[random() % 19];
          break;
        case 2:
          bad.erase(at, length);
          break;
        case 3:
          bad.insert(at, good.substr(random() % good.size(), length));
          break;
      }
    }
    const auto tokenizer = Tokenizer::Parse(bad, "bad.json");
    if (!tokenizer.ok()) {
      ++refused;
      ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    const auto ids = (*tokenizer)->Encode("abc <s>ab\u00e9 z", true);
    ASSERT_TRUE(ids.ok());
    ASSERT_TRUE((*tokenizer)->Decode(*ids, false).ok());
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace asynctls
