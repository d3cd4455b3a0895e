// SPDX-License-Identifier: Apache-2.0
#include "engine/text/tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"

namespace asynctls {
namespace {

// Scratches kept for later calls; more callers at once than this pay for a new one each.
constexpr size_t kMaxIdleScratches = 16;

}  // namespace

// Takes a scratch from the pool, or makes one, and gives it back.
class Tokenizer::ScratchLease {
 public:
  explicit ScratchLease(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    {
      std::lock_guard<std::mutex> lock(tokenizer_.mu_);
      if (!tokenizer_.idle_.empty()) {
        scratch_ = std::move(tokenizer_.idle_.back());
        tokenizer_.idle_.pop_back();
      }
    }
    if (scratch_ == nullptr) scratch_ = std::make_unique<BpeScratch>();
  }
  ~ScratchLease() {
    scratch_->ReleaseLargeBuffers();
    std::lock_guard<std::mutex> lock(tokenizer_.mu_);
    if (tokenizer_.idle_.size() < kMaxIdleScratches) {
      tokenizer_.idle_.push_back(std::move(scratch_));
    }
  }
  BpeScratch& operator*() { return *scratch_; }

 private:
  const Tokenizer& tokenizer_;
  std::unique_ptr<BpeScratch> scratch_;
};

Tokenizer::Tokenizer(TokenizerFile file)
    : bpe_(file.byte_ids, file.merges),
      added_(file.added),
      bytes_(std::move(file.bytes)),
      special_(bytes_.size()) {
  for (const AddedToken& token : file.added) special_[token.id] = token.special;
  for (uint32_t id = 0; id < file.spellings.size(); ++id) {
    if (!file.spellings[id].empty()) ids_.emplace(std::move(file.spellings[id]), id);
  }
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  absl::StatusOr<std::string> json = ReadFile(path);
  if (!json.ok()) return json.status();
  return Parse(*json, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(absl::string_view json,
                                                            absl::string_view origin) {
  absl::StatusOr<TokenizerFile> file = ParseTokenizerFile(json, origin);
  if (!file.ok()) return file.status();
  return std::unique_ptr<Tokenizer>(new Tokenizer(*std::move(file)));
}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(absl::string_view text,
                                                        bool parse_special) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes is over the limit of ", kMaxTextBytes));
  }
  if (const size_t offset = FirstInvalidUtf8(text); offset != text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", offset));
  }
  std::vector<uint32_t> ids;
  ids.reserve(text.size() / 2 + 16);
  ScratchLease scratch(*this);
  size_t done = 0;
  std::optional<AddedTokenFinder::Match> match = added_.Find(text, 0);
  while (match.has_value()) {
    if (parse_special || !match->special) {
      EncodeText(text.substr(done, match->begin - done), *scratch, ids);
      ids.push_back(match->id);
      done = match->end;
    }
    match = added_.Find(text, match->end);
  }
  EncodeText(text.substr(done), *scratch, ids);
  return ids;
}

void Tokenizer::EncodeText(absl::string_view text,
                           BpeScratch& scratch,
                           std::vector<uint32_t>& out) const {
  std::string normalized;
  if (!IsSurelyNfc(text)) {
    normalized = NormalizeNfc(text);
    text = normalized;
  }
  const CharTable& table = CharTable::Get();
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p < end;) {
    const char* const next = NextWord(table, p, end);
    bpe_.Encode({p, static_cast<size_t>(next - p)}, end, scratch, out);
    p = next;
  }
  scratch.Flush(out);
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const uint32_t> ids,
                                              bool skip_special) const {
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (BytesOf(ids[i]).empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "ids[", i, "] is ", ids[i], ", which is no token; the vocabulary has ", vocab_size()));
    }
    if (!(skip_special && IsSpecial(ids[i]))) bytes += bytes_[ids[i]];
  }
  std::string text;
  text.reserve(bytes.size());
  if (AppendLossyUtf8(bytes, text) < bytes.size()) {
    text.append(kReplacementCharacter.data(), kReplacementCharacter.size());
  }
  return text;
}

std::optional<uint32_t> Tokenizer::IdOf(absl::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

absl::string_view Tokenizer::BytesOf(uint32_t id) const {
  return id < bytes_.size() ? absl::string_view(bytes_[id]) : absl::string_view();
}

}  // namespace asynctls
