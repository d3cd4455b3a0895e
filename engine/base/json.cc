// SPDX-License-Identifier: Apache-2.0
#include "engine/base/json.h"

#include <fstream>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"

namespace asynctls {
namespace {

constexpr int kMaxDepth = 64;

// SAX consumer: builds the document through nlohmann's own DOM builder, refusing what a
// checkpoint must not contain.
class StrictBuilder {
 public:
  explicit StrictBuilder(Json& root) : dom_(root, /*allow_exceptions=*/false) {}

  bool null() { return dom_.null(); }
  bool boolean(bool v) { return dom_.boolean(v); }
  bool number_integer(Json::number_integer_t v) { return dom_.number_integer(v); }
  bool number_unsigned(Json::number_unsigned_t v) { return dom_.number_unsigned(v); }
  bool number_float(Json::number_float_t v, const std::string& s) {
    return dom_.number_float(v, s);
  }
  bool string(std::string& v) { return dom_.string(v); }
  bool binary(Json::binary_t& v) { return dom_.binary(v); }
  bool start_object(std::size_t n) {
    keys_.emplace_back();
    return Deeper() && dom_.start_object(n);
  }
  bool key(std::string& k) {
    if (!keys_.back().insert(k).second) return Fail(absl::StrCat("duplicate key '", k, "'"));
    return dom_.key(k);
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return dom_.end_object();
  }
  bool start_array(std::size_t n) { return Deeper() && dom_.start_array(n); }
  bool end_array() {
    --depth_;
    return dom_.end_array();
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) {
    const absl::string_view what = e.what();
    const size_t detail = what.find("] ");
    return Fail(absl::StrCat(
        "byte ", position, ": ", detail == what.npos ? what : what.substr(detail + 2)));
  }
  const std::string& error() const { return error_; }

 private:
  bool Deeper() {
    return ++depth_ <= kMaxDepth || Fail(absl::StrCat("nested deeper than ", kMaxDepth));
  }
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }

  nlohmann::detail::json_sax_dom_parser<Json> dom_;
  std::vector<std::set<std::string>> keys_;
  int depth_ = 0;
  std::string error_;
};

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view origin) {
  Json root;
  StrictBuilder builder(root);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": not valid JSON: ", builder.error()));
  }
  return root;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const int64_t size = in.tellg();
  if (size < 0) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  if (size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", size, " bytes, over the limit of ", max_bytes));
  }
  std::string data(static_cast<size_t>(size), '\0');
  in.seekg(0);
  if (!in.read(data.data(), size)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return data;
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, int64_t max_bytes) {
  absl::StatusOr<std::string> text = ReadFile(path, max_bytes);
  if (!text.ok()) return text.status();
  return ParseJson(*text, path);
}

}  // namespace asynctls
