// SPDX-License-Identifier: Apache-2.0
#include "engine/base/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "tests/testing/temp_dir.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file with this header and so many zero bytes of data behind it.
std::string FileOf(const std::string& header, size_t data_bytes) {
  const uint64_t n = header.size();
  std::string file(reinterpret_cast<const char*>(&n), 8);
  return file + header + std::string(data_bytes, '\0');
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Opening such a file fails with INVALID_ARGUMENT, and says the file's name and `part`.
void ExpectRefused(const std::string& bytes, const std::string& part) {
  const TempDir dir;
  const std::string path = dir.Write("m.safetensors", bytes);
  const absl::StatusOr<TensorSource> source = TensorSource::OpenFile(path);
  EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument) << part;
  EXPECT_THAT(Message(source.status()), HasSubstr("m.safetensors: "));
  EXPECT_THAT(Message(source.status()), HasSubstr(part));
}

TEST(SafetensorsTest, WritesAndReadsBack) {
  const TempDir dir;
  const float a[] = {1, 2, 3, 4, 5, 6};
  const uint8_t b[] = {7};
  const TensorToWrite tensors[] = {
      {.name = "b", .dtype = "U8", .shape = {1}, .bytes = std::as_bytes(std::span(b))},
      {.name = "a", .dtype = "F32", .shape = {2, 3}, .bytes = std::as_bytes(std::span(a))}};
  const std::string path = dir.File("t.safetensors");
  ASSERT_TRUE(WriteTensors(path, tensors, {{"who", "me"}}).ok());

  absl::StatusOr<TensorSource> source = TensorSource::OpenFile(path);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->tensors().size(), 2u);
  EXPECT_EQ(source->metadata().at("who"), "me");
  const Tensor* read = source->Find("a");
  ASSERT_NE(read, nullptr);
  EXPECT_EQ(read->dtype, "F32");
  EXPECT_THAT(read->shape, ElementsAre(2, 3));
  ASSERT_EQ(read->bytes.size(), sizeof(a));
  EXPECT_EQ(std::memcmp(read->bytes.data(), a, sizeof(a)), 0);
  EXPECT_EQ(source->Find("c"), nullptr);
  // Nothing but the file is left in the folder.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(SafetensorsTest, WriteNamesWhatItCannotDo) {
  const TempDir dir;
  const uint8_t b[] = {7};
  const TensorToWrite wrong[] = {
      {.name = "b", .dtype = "F32", .shape = {1}, .bytes = std::as_bytes(std::span(b))}};
  EXPECT_THAT(Message(WriteTensors(dir.File("t"), wrong, {})), HasSubstr("tensor 'b' (1 bytes)"));
  EXPECT_EQ(WriteTensors(dir.File("no/such/folder"), {}, {}).code(),
            absl::StatusCode::kPermissionDenied);
}

TEST(SafetensorsTest, RefusesBrokenFiles) {
  ExpectRefused("1234567", "7 bytes, too short");
  ExpectRefused(FileOf("", 0), "not valid JSON");
  ExpectRefused(FileOf("[]", 0), "header is not an object");
  std::string beyond = FileOf("{}", 0);
  beyond[0] = 100;
  ExpectRefused(beyond, "header length 100 is over the limit of 2");
  beyond[7] = '\xff';
  ExpectRefused(beyond, "is over the limit of 2");
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                       1),
                "duplicate key 'a'");
}

TEST(SafetensorsTest, RefusesTruncatedData) {
  ExpectRefused(FileOf(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 15),
                "tensor 'a': data_offsets [0, 16] are not inside the 15 bytes of data");
}

TEST(SafetensorsTest, RefusesBrokenEntries) {
  const auto entry = [](const std::string& body) { return FileOf("{\"t\":" + body + "}", 8); };
  ExpectRefused(entry("3"), "tensor 't': not an object");
  ExpectRefused(entry(R"({"shape":[8],"data_offsets":[0,8]})"), "dtype missing");
  ExpectRefused(entry(R"({"dtype":"F7","shape":[8],"data_offsets":[0,8]})"), "unknown dtype 'F7'");
  ExpectRefused(entry(R"({"dtype":"U8","data_offsets":[0,8]})"), "shape missing");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[-8],"data_offsets":[0,8]})"), "shape has '-8'");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[8.5],"data_offsets":[0,8]})"), "shape has '8.5'");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8]})"),
                "shape has '18446744073709551615'");
  ExpectRefused(entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"),
                "overflows");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,8]})"),
                "9 dimensions, the limit is 8");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[8]})"), "data_offsets missing");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[8],"data_offsets":[8,0]})"), "data_offsets [8, 0]");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[8],"data_offsets":[0]})"), "data_offsets [0]");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[7],"data_offsets":[0,8]})"),
                "data_offsets hold 8 bytes, but U8 [7] has 7");
}

TEST(SafetensorsTest, RefusesOverlapsAndHoles) {
  const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  ExpectRefused(FileOf(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6),
                "tensor 'b': data_offsets start at 2, inside another tensor that ends at 4");
  ExpectRefused(FileOf(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", 9),
                "bytes 4 to 5 of the data belong to no tensor");
  ExpectRefused(FileOf(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 9),
                "bytes 8 to 9 of the data belong to no tensor");
}

TEST(SafetensorsTest, NamesAMissingFile) {
  EXPECT_EQ(TensorSource::OpenFile("/no/such.safetensors").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(TensorSource::OpenCheckpoint("/no/such").status()),
              HasSubstr("/no/such/model.safetensors: cannot be opened"));
}

class ShardedTest : public ::testing::Test {
 protected:
  ShardedTest() {
    dir_.Write("one.safetensors",
               FileOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
    dir_.Write("two.safetensors",
               FileOf(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2));
  }
  absl::StatusOr<TensorSource> Open(const std::string& weight_map) {
    dir_.Write("model.safetensors.index.json",
               R"({"metadata":{},"weight_map":)" + weight_map + "}");
    return TensorSource::OpenCheckpoint(dir_.path());
  }
  TempDir dir_;
};

TEST_F(ShardedTest, ReadsAllShards) {
  absl::StatusOr<TensorSource> source = Open(R"({"a":"one.safetensors","b":"two.safetensors"})");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->Find("a")->bytes.size(), 1u);
  EXPECT_EQ(*source->Find("b")->file, dir_.File("two.safetensors"));
}

TEST_F(ShardedTest, RefusesAnIndexThatDoesNotMatch) {
  EXPECT_THAT(Message(Open(R"({"a":"one.safetensors","b":"one.safetensors"})").status()),
              HasSubstr("tensor 'b' is not in 'one.safetensors'"));
  EXPECT_THAT(Message(Open(R"({"a":"one.safetensors","b":"three.safetensors"})").status()),
              HasSubstr("three.safetensors: cannot be opened"));
  EXPECT_THAT(Message(Open(R"({"a":"../one.safetensors"})").status()),
              HasSubstr("not the name of a file in this folder"));
  EXPECT_THAT(Message(Open("3").status()), HasSubstr("weight_map missing"));
  dir_.Write("two.safetensors",
             FileOf(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                    R"("c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                    2));
  EXPECT_THAT(Message(Open(R"({"a":"one.safetensors","b":"two.safetensors"})").status()),
              HasSubstr("tensor 'c' is not listed"));
  dir_.Write("two.safetensors",
             FileOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  EXPECT_THAT(Message(Open(R"({"a":"one.safetensors","b":"two.safetensors"})").status()),
              HasSubstr("tensor 'a' is in two files"));
}

}  // namespace
}  // namespace asynctls
