// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer_file.h"

#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/utf8.h"

namespace asynctls {
namespace {

// Byte-level BPE spells each byte as a printable character (GPT-2's table): itself where it is
// printable Latin-1, the next free one from U+0100 on otherwise.
constexpr char32_t kAlphabetEnd = 0x144;
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      char_of_[byte] = printable ? static_cast<char32_t>(byte) : next++;
      byte_of_[char_of_[byte]] = byte;
    }
  }
  std::string Spell(int byte) const {
    std::string spelling;
    AppendUtf8(char_of_[byte], spelling);
    return spelling;
  }
  // The bytes that `spelling` stands for; itself if it has a character from outside the alphabet,
  // as added tokens may (and as HuggingFace does it).
  std::string Read(const std::string& spelling) const {
    std::string bytes;
    for (const char* p = spelling.data(); p < spelling.data() + spelling.size();) {
      const char32_t c = DecodeUtf8(p);
      if (c >= kAlphabetEnd || byte_of_[c] < 0) return spelling;
      bytes += static_cast<char>(byte_of_[c]);
      p += Utf8Length(static_cast<uint8_t>(*p));
    }
    return bytes;
  }

 private:
  std::array<char32_t, 256> char_of_;
  std::array<int, kAlphabetEnd> byte_of_;
};

class Reader {
 public:
  Reader(const Json& root, absl::string_view origin) : root_(root), origin_(origin) {}

  absl::StatusOr<TokenizerFile> Read() {
    for (absl::Status (Reader::*step)() : {&Reader::CheckPipeline,
                                           &Reader::CheckModel,
                                           &Reader::ReadVocab,
                                           &Reader::ReadAdded,
                                           &Reader::ReadMerges}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    const ByteAlphabet alphabet;
    for (const std::string& spelling : file_.spellings) {
      file_.bytes.push_back(alphabet.Read(spelling));
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = vocab_.find(alphabet.Spell(byte));
      if (found == vocab_.end()) {
        return Error("model.vocab",
                     absl::StrCat("no token for byte ", byte, " ('", alphabet.Spell(byte), "')"));
      }
      file_.byte_ids[byte] = found->second;
    }
    return std::move(file_);
  }

 private:
  absl::Status Error(absl::string_view field, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(origin_, ": ", field, ": ", what));
  }

  // The value at a dotted path; null if there is none.
  const Json* Find(absl::string_view path) const {
    const Json* value = &root_;
    while (!path.empty()) {
      const size_t dot = path.find('.');
      const std::string key(path.substr(0, dot));
      path = dot == path.npos ? absl::string_view() : path.substr(dot + 1);
      const auto found = value->find(key);  // end() too if `value` is no object
      if (found == value->end()) return nullptr;
      value = &*found;
    }
    return value;
  }

  // The field must be `wanted`, or may be absent if `or_absent`.
  absl::Status Want(absl::string_view field, const Json& wanted, bool or_absent = false) const {
    static const Json* const kAbsent = new Json("absent");
    const Json* value = Find(field);
    if (value == nullptr) {
      if (or_absent) return absl::OkStatus();
      value = kAbsent;
    }
    if (*value == wanted) return absl::OkStatus();
    std::string is = value->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (is.size() > 300) is = absl::StrCat(is.substr(0, 300), "...");
    return Error(field, absl::StrCat("is ", is, ", and only ", wanted.dump(), " is implemented"));
  }

  absl::Status CheckPipeline() {
    if (!root_.is_object()) return Error("file", "is not a JSON object");
    const Json* pre = Find("pre_tokenizer.pretokenizers");
    if (absl::Status s = Want("pre_tokenizer.type", "Sequence"); !s.ok()) return s;
    if (pre == nullptr || !pre->is_array() || pre->size() != 2) {
      return Error("pre_tokenizer.pretokenizers", "must be a list of Split and ByteLevel");
    }
    const Json split = {{"type", "Split"},
                        {"pattern", {{"Regex", std::string(kQwen2Pattern)}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    const std::pair<const char*, Json> wanted[] = {
        {"version", "1.0"}, {"normalizer.type", "NFC"}, {"decoder.type", "ByteLevel"}};
    for (const auto& [field, value] : wanted) {
      if (absl::Status s = Want(field, value); !s.ok()) return s;
    }
    for (const char* field : {"truncation", "padding"}) {
      if (absl::Status s = Want(field, nullptr, true); !s.ok()) return s;
    }
    if (const Json* post = Find("post_processor"); post != nullptr && !post->is_null()) {
      if (absl::Status s = Want("post_processor.type", "ByteLevel"); !s.ok()) return s;
    }
    if ((*pre)[0] != split) {
      return Error("pre_tokenizer.pretokenizers[0]",
                   absl::StrCat("only this is implemented: ", split.dump()));
    }
    for (const auto& [field, value] : std::initializer_list<std::pair<const char*, Json>>{
             {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}) {
      const auto found = (*pre)[1].find(field);
      if (found == (*pre)[1].end() || *found != value) {
        return Error(absl::StrCat("pre_tokenizer.pretokenizers[1].", field),
                     absl::StrCat("only ", value.dump(), " is implemented"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckModel() {
    if (absl::Status s = Want("model.type", "BPE"); !s.ok()) return s;
    for (const char* field : {"model.dropout", "model.unk_token"}) {
      if (absl::Status s = Want(field, nullptr, true); !s.ok()) return s;
    }
    for (const char* field : {"model.byte_fallback", "model.ignore_merges"}) {
      if (absl::Status s = Want(field, false, true); !s.ok()) return s;
    }
    for (const char* field : {"model.continuing_subword_prefix", "model.end_of_word_suffix"}) {
      const Json* value = Find(field);
      if (value != nullptr && value->is_null()) continue;
      if (absl::Status s = Want(field, "", true); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  // An id, checked; `field` names it in errors.
  absl::StatusOr<uint32_t> Id(const Json& value, const std::string& field) const {
    const auto* id = value.get_ptr<const Json::number_unsigned_t*>();
    if (id == nullptr) return Error(field, "the id is not a non-negative integer");
    if (*id >= Bpe::kMaxIds) {
      return Error(field, absl::StrCat("id ", *id, " is over the limit of ", Bpe::kMaxIds - 1));
    }
    return static_cast<uint32_t>(*id);
  }

  absl::Status AddSpelling(uint32_t id, const std::string& spelling, const std::string& field) {
    if (spelling.empty() || spelling.size() > TokenizerFile::kMaxTokenBytes) {
      return Error(field,
                   absl::StrCat("a token of ",
                                spelling.size(),
                                " bytes; the limits are 1 and ",
                                TokenizerFile::kMaxTokenBytes));
    }
    if (id >= file_.spellings.size()) file_.spellings.resize(id + 1);
    if (!file_.spellings[id].empty()) {
      return Error(field,
                   absl::StrCat("id ", id, " is already that of '", file_.spellings[id], "'"));
    }
    file_.spellings[id] = spelling;
    return absl::OkStatus();
  }

  absl::Status ReadVocab() {
    const Json* vocab = Find("model.vocab");
    if (vocab == nullptr || !vocab->is_object()) return Error("model.vocab", "is not an object");
    for (const auto& [spelling, value] : vocab->items()) {
      const std::string field = absl::StrCat("model.vocab['", spelling.substr(0, 64), "']");
      absl::StatusOr<uint32_t> id = Id(value, field);
      if (!id.ok()) return id.status();
      if (absl::Status s = AddSpelling(*id, spelling, field); !s.ok()) return s;
      vocab_[spelling] = *id;
    }
    return absl::OkStatus();
  }

  absl::Status ReadAdded() {
    const Json* tokens = Find("added_tokens");
    if (tokens == nullptr) return absl::OkStatus();
    if (!tokens->is_array()) return Error("added_tokens", "is not a list");
    for (size_t i = 0; i < tokens->size(); ++i) {
      if (absl::Status s = ReadOneAdded((*tokens)[i], absl::StrCat("added_tokens[", i, "]"));
          !s.ok()) {
        return s;
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadOneAdded(const Json& token, const std::string& field) {
    if (!token.is_object()) return Error(field, "is not an object");
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"}) {
      const auto found = token.find(flag);
      if (found == token.end() || !found->is_boolean()) {
        return Error(absl::StrCat(field, ".", flag), "is not true or false");
      }
      if (*found != false && absl::string_view(flag) != "special") {
        return Error(absl::StrCat(field, ".", flag), "only false is implemented");
      }
    }
    const auto content = token.find("content");
    const auto* spelling =
        content == token.end() ? nullptr : content->get_ptr<const std::string*>();
    if (spelling == nullptr || spelling->empty() ||
        spelling->size() > AddedTokenFinder::kMaxBytes) {
      return Error(absl::StrCat(field, ".content"),
                   absl::StrCat("is not a string of 1 to ", AddedTokenFinder::kMaxBytes, " bytes"));
    }
    const auto id_field = token.find("id");
    if (id_field == token.end()) return Error(absl::StrCat(field, ".id"), "is missing");
    absl::StatusOr<uint32_t> id = Id(*id_field, absl::StrCat(field, ".id"));
    if (!id.ok()) return id.status();
    // A token of the vocabulary may be declared as added too, with the same id.
    const auto known = vocab_.find(*spelling);
    if (known != vocab_.end() && known->second != *id) {
      return Error(absl::StrCat(field, ".id"),
                   absl::StrCat("is ",
                                *id,
                                ", but '",
                                *spelling,
                                "' is ",
                                known->second,
                                " in model.vocab or an earlier entry"));
    }
    if (known == vocab_.end()) {
      if (absl::Status s = AddSpelling(*id, *spelling, field); !s.ok()) return s;
      vocab_[*spelling] = *id;
    }
    file_.added.push_back({*id, *spelling, token.find("special")->get<bool>()});
    return absl::OkStatus();
  }

  // Either "a b" or ["a", "b"].
  static std::optional<std::pair<std::string, std::string>> SplitMerge(const Json& merge) {
    if (const auto* text = merge.get_ptr<const std::string*>()) {
      const size_t space = text->find(' ');
      if (space == text->npos || text->find(' ', space + 1) != text->npos) return std::nullopt;
      return std::make_pair(text->substr(0, space), text->substr(space + 1));
    }
    if (!merge.is_array() || merge.size() != 2) return std::nullopt;
    const auto* left = merge[0].get_ptr<const std::string*>();
    const auto* right = merge[1].get_ptr<const std::string*>();
    if (left == nullptr || right == nullptr) return std::nullopt;
    return std::make_pair(*left, *right);
  }

  absl::Status ReadMerges() {
    const Json* merges = Find("model.merges");
    if (merges == nullptr || !merges->is_array()) return Error("model.merges", "is not a list");
    if (merges->size() >= Bpe::kMaxMerges) {
      return Error(
          "model.merges",
          absl::StrCat(merges->size(), " entries, over the limit of ", Bpe::kMaxMerges - 1));
    }
    for (size_t i = 0; i < merges->size(); ++i) {
      const auto pair = SplitMerge((*merges)[i]);
      const std::string field = absl::StrCat("model.merges[", i, "]");
      if (!pair.has_value()) return Error(field, "is not a pair of tokens");
      uint32_t ids[3];
      const std::string* const spellings[] = {&pair->first, &pair->second};
      const std::string whole = pair->first + pair->second;
      for (int part = 0; part < 3; ++part) {
        const std::string& spelling = part < 2 ? *spellings[part] : whole;
        const auto found = vocab_.find(spelling);
        if (found == vocab_.end()) {
          return Error(field, absl::StrCat("'", spelling.substr(0, 64), "' is not in model.vocab"));
        }
        ids[part] = found->second;
      }
      file_.merges.push_back({ids[0], ids[1], ids[2]});
    }
    return absl::OkStatus();
  }

  const Json& root_;
  const absl::string_view origin_;
  TokenizerFile file_;
  absl::flat_hash_map<std::string, uint32_t> vocab_;  // ids by spelling
};

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view json, absl::string_view origin) {
  absl::StatusOr<Json> root = ParseJson(json, origin);
  if (!root.ok()) return root.status();
  return Reader(*root, origin).Read();
}

}  // namespace asynctls
