// SPDX-License-Identifier: Apache-2.0
#include "engine/base/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/json.h"

namespace asynctls {
namespace {

constexpr int64_t kMaxHeader = 100'000'000;
constexpr int kMaxDimensions = 8;
constexpr const char* kMetadata = "__metadata__";

absl::Status Invalid(absl::string_view file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what));
}

// Bytes of one element, 0 for a type we do not know.
int64_t ElementBytes(absl::string_view dtype) {
  static constexpr std::pair<absl::string_view, int64_t> kTypes[] = {{"F64", 8},
                                                                     {"F32", 4},
                                                                     {"F16", 2},
                                                                     {"BF16", 2},
                                                                     {"I64", 8},
                                                                     {"I32", 4},
                                                                     {"I16", 2},
                                                                     {"I8", 1},
                                                                     {"U64", 8},
                                                                     {"U32", 4},
                                                                     {"U16", 2},
                                                                     {"U8", 1},
                                                                     {"BOOL", 1},
                                                                     {"F8_E4M3", 1},
                                                                     {"F8_E5M2", 1}};
  for (const auto& [name, bytes] : kTypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

// Bytes of `shape` x `dtype`, or an error naming the field.
absl::StatusOr<int64_t> TensorBytes(absl::string_view dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = ElementBytes(dtype);
  if (bytes == 0) return absl::InvalidArgumentError(absl::StrCat("unknown dtype '", dtype, "'"));
  for (int64_t dim : shape) {
    if (dim < 0) return absl::InvalidArgumentError(absl::StrCat("shape has dimension ", dim));
    if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape [", absl::StrJoin(shape, ", "), "] overflows 2^63 bytes"));
    }
  }
  return bytes;
}

// Reads `array` as integers >= 0 into `out`.
absl::Status ReadSizes(const Json& array, absl::string_view field, std::vector<int64_t>& out) {
  if (!array.is_array()) return absl::InvalidArgumentError(absl::StrCat(field, " is not an array"));
  for (const Json& value : array) {
    // Values above 2^63 parse as unsigned and turn negative here.
    const int64_t v = value.is_number_integer() ? value.get<int64_t>() : -1;
    if (v < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " has '", value.dump(), "', not an integer from 0 to 2^63 - 1"));
    }
    out.push_back(v);
  }
  return absl::OkStatus();
}

// One header entry, its offsets checked against `data_bytes`. `begin` is where its bytes start.
absl::Status ReadEntry(const Json& entry, int64_t data_bytes, Tensor& tensor, int64_t& begin) {
  if (!entry.is_object()) return absl::InvalidArgumentError("not an object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) {
    return absl::InvalidArgumentError("dtype missing or not a string");
  }
  tensor.dtype = dtype->get<std::string>();
  if (!entry.contains("shape")) return absl::InvalidArgumentError("shape missing");
  absl::Status status = ReadSizes(entry["shape"], "shape", tensor.shape);
  if (!status.ok()) return status;
  if (tensor.shape.size() > kMaxDimensions) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape has ", tensor.shape.size(), " dimensions, the limit is 8"));
  }
  absl::StatusOr<int64_t> bytes = TensorBytes(tensor.dtype, tensor.shape);
  if (!bytes.ok()) return bytes.status();
  if (!entry.contains("data_offsets")) return absl::InvalidArgumentError("data_offsets missing");
  std::vector<int64_t> offsets;
  status = ReadSizes(entry["data_offsets"], "data_offsets", offsets);
  if (!status.ok()) return status;
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("data_offsets [",
                                                   absl::StrJoin(offsets, ", "),
                                                   "] are not inside the ",
                                                   data_bytes,
                                                   " bytes of data"));
  }
  if (offsets[1] - offsets[0] != *bytes) {
    return absl::InvalidArgumentError(absl::StrCat("data_offsets hold ",
                                                   offsets[1] - offsets[0],
                                                   " bytes, but ",
                                                   tensor.dtype,
                                                   " [",
                                                   absl::StrJoin(tensor.shape, ", "),
                                                   "] has ",
                                                   *bytes));
  }
  begin = offsets[0];
  return absl::OkStatus();
}

// Every byte belongs to exactly one tensor. `spans` is [begin, end), name.
absl::Status CheckCoverage(std::vector<std::pair<std::pair<int64_t, int64_t>, std::string>>& spans,
                           int64_t data_bytes) {
  std::sort(spans.begin(), spans.end());
  int64_t end = 0;
  for (const auto& [span, name] : spans) {
    if (span.first < end) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '",
                                                     name,
                                                     "': data_offsets start at ",
                                                     span.first,
                                                     ", inside another tensor that ends at ",
                                                     end));
    }
    if (span.first > end) {
      return absl::InvalidArgumentError(
          absl::StrCat("bytes ", end, " to ", span.first, " of the data belong to no tensor"));
    }
    end = span.second;
  }
  if (end != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes ", end, " to ", data_bytes, " of the data belong to no tensor"));
  }
  return absl::OkStatus();
}

bool FileExists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

absl::Status WriteAll(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = write(fd, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::ResourceExhaustedError(std::strerror(errno));
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

// A read-only mapping of a whole file.
class TensorSource::Mapping {
 public:
  static absl::StatusOr<std::unique_ptr<Mapping>> Open(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      return absl::NotFoundError(absl::StrCat(path, ": cannot be opened: ", std::strerror(errno)));
    }
    struct stat info;
    const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    void* data = MAP_FAILED;
    if (regular && info.st_size >= 8) {
      data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    }
    auto mapping = std::make_unique<Mapping>();
    mapping->fd_ = fd;
    if (!regular) return Invalid(path, "not a regular file");
    if (info.st_size < 8) {
      return Invalid(path, absl::StrCat(info.st_size, " bytes, too short for a header length"));
    }
    if (data == MAP_FAILED) return Invalid(path, "cannot be mapped");
    mapping->path_ = path;
    mapping->data_ = static_cast<const std::byte*>(data);
    mapping->bytes_ = info.st_size;
    return mapping;
  }
  Mapping() = default;
  ~Mapping() {
    if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), static_cast<size_t>(bytes_));
    if (fd_ >= 0) close(fd_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
  std::string path_;
  const std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

TensorSource::TensorSource() = default;
TensorSource::~TensorSource() = default;
TensorSource::TensorSource(TensorSource&&) noexcept = default;
TensorSource& TensorSource::operator=(TensorSource&&) noexcept = default;

absl::Status TensorSource::AddFile(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Mapping>> opened = Mapping::Open(path);
  if (!opened.ok()) return opened.status();
  mappings_.push_back(*std::move(opened));
  const Mapping& map = *mappings_.back();

  uint64_t header_bytes;
  std::memcpy(&header_bytes, map.data(), 8);
  if (header_bytes > static_cast<uint64_t>(std::min(map.bytes() - 8, kMaxHeader))) {
    return Invalid(path,
                   absl::StrCat("header length ",
                                header_bytes,
                                " is over the limit of ",
                                std::min(map.bytes() - 8, kMaxHeader),
                                " (file of ",
                                map.bytes(),
                                " bytes)"));
  }
  const int64_t data_begin = 8 + static_cast<int64_t>(header_bytes);
  const int64_t data_bytes = map.bytes() - data_begin;
  absl::StatusOr<Json> header = ParseJson(
      {reinterpret_cast<const char*>(map.data()) + 8, static_cast<size_t>(header_bytes)}, path);
  if (!header.ok()) return header.status();
  if (!header->is_object()) return Invalid(path, "header is not an object");

  std::vector<std::pair<std::pair<int64_t, int64_t>, std::string>> spans;
  for (const auto& [name, entry] : header->items()) {
    if (name == kMetadata) {
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    Tensor tensor{.name = name, .dtype = {}, .shape = {}, .bytes = {}, .file = &map.path()};
    int64_t begin = 0;
    const absl::Status status = ReadEntry(entry, data_bytes, tensor, begin);
    if (!status.ok()) {
      return Invalid(path, absl::StrCat("tensor '", name, "': ", status.message()));
    }
    const int64_t bytes = *TensorBytes(tensor.dtype, tensor.shape);
    tensor.bytes = {map.data() + data_begin + begin, static_cast<size_t>(bytes)};
    spans.push_back({{begin, begin + bytes}, name});
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      return Invalid(path, absl::StrCat("tensor '", name, "' is in two files"));
    }
  }
  const absl::Status covered = CheckCoverage(spans, data_bytes);
  return covered.ok() ? covered : Invalid(path, covered.message());
}

absl::StatusOr<TensorSource> TensorSource::OpenFile(const std::string& path) {
  TensorSource source;
  source.path_ = path;
  const absl::Status status = source.AddFile(path);
  if (!status.ok()) return status;
  return source;
}

absl::StatusOr<TensorSource> TensorSource::OpenCheckpoint(const std::string& dir) {
  const std::string index_path = dir + "/model.safetensors.index.json";
  if (!FileExists(index_path)) return OpenFile(dir + "/model.safetensors");

  absl::StatusOr<Json> index = ReadJsonFile(index_path);
  if (!index.ok()) return index.status();
  if (!index->is_object() || !index->contains("weight_map") ||
      !(*index)["weight_map"].is_object()) {
    return Invalid(index_path, "weight_map missing or not an object");
  }
  const Json& weight_map = (*index)["weight_map"];
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map.items()) {
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    if (file.empty() || file.find('/') != file.npos) {
      return Invalid(index_path,
                     absl::StrCat("weight_map.'",
                                  name,
                                  "' is '",
                                  shard.dump(),
                                  "', not the name of a file in this folder"));
    }
    shards.insert(file);
  }
  TensorSource source;
  source.path_ = dir;
  for (const std::string& shard : shards) {
    const absl::Status status = source.AddFile(dir + "/" + shard);
    if (!status.ok()) return status;
  }
  source.metadata_.clear();
  for (const auto& [name, shard] : weight_map.items()) {
    const Tensor* tensor = source.Find(name);
    if (tensor == nullptr || *tensor->file != dir + "/" + shard.get<std::string>()) {
      return Invalid(
          index_path,
          absl::StrCat("tensor '", name, "' is not in '", shard.get<std::string>(), "'"));
    }
  }
  for (const auto& [name, tensor] : source.tensors_) {
    if (!weight_map.contains(name)) {
      return Invalid(*tensor.file,
                     absl::StrCat("tensor '", name, "' is not listed in ", index_path));
    }
  }
  return source;
}

absl::Status TensorSource::Read(const Tensor& tensor,
                                int64_t offset,
                                int64_t bytes,
                                void* to) const {
  const auto map = std::find_if(
      mappings_.begin(), mappings_.end(), [&](const auto& m) { return &m->path() == tensor.file; });
  assert(map != mappings_.end());
  assert(offset >= 0 && offset + bytes <= static_cast<int64_t>(tensor.bytes.size()));
  int64_t at = tensor.bytes.data() + offset - (*map)->data();
  for (char* out = static_cast<char*>(to); bytes > 0;) {
    const ssize_t n = pread((*map)->fd(), out, static_cast<size_t>(bytes), at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return absl::DataLossError(
          absl::StrCat(*tensor.file,
                       ": cannot be read at byte ",
                       at,
                       ": ",
                       n == 0 ? "the file has ended" : std::strerror(errno)));
    }
    out += n;
    at += n;
    bytes -= n;
  }
  return absl::OkStatus();
}

const Tensor* TensorSource::Find(absl::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::Status WriteTensors(const std::string& path,
                          std::span<const TensorToWrite> tensors,
                          const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  int64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const absl::StatusOr<int64_t> bytes = TensorBytes(tensor.dtype, tensor.shape);
    if (!bytes.ok() || *bytes != static_cast<int64_t>(tensor.bytes.size()) ||
        header.contains(tensor.name)) {
      return Invalid(path,
                     absl::StrCat("tensor '",
                                  tensor.name,
                                  "' (",
                                  tensor.bytes.size(),
                                  " bytes) does not fit its shape, or is there twice"));
    }
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data starts on 8 bytes

  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(temporary, ": cannot be created: ", std::strerror(errno)));
  }
  const uint64_t header_bytes = text.size();
  absl::Status status = WriteAll(fd, &header_bytes, 8);
  if (status.ok()) status = WriteAll(fd, text.data(), text.size());
  for (const TensorToWrite& tensor : tensors) {
    if (status.ok()) status = WriteAll(fd, tensor.bytes.data(), tensor.bytes.size());
  }
  if (fsync(fd) != 0 && status.ok()) status = absl::ResourceExhaustedError(std::strerror(errno));
  close(fd);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    status = absl::PermissionDeniedError(std::strerror(errno));
  }
  if (status.ok()) return status;
  unlink(temporary.c_str());
  return absl::Status(status.code(), absl::StrCat(path, ": cannot be written: ", status.message()));
}

}  // namespace asynctls
