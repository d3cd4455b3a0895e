// SPDX-License-Identifier: Apache-2.0
#include "server/http/json_fields.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/frontend/errors.h"

namespace asynctls {
namespace {

TEST(JsonFieldsTest, ReadsWhatIsThere) {
  const Json json = Json::parse(
      R"({"s":"x","b":true,"f":0.5,"i":-3,"u":7,"seed":18446744073709551615,"o":{},"a":[1],
          "none":null,"big":1e300,"low":-1e300})");
  JsonFields fields(json, "");
  EXPECT_EQ(fields.String("s"), "x");
  EXPECT_EQ(fields.Bool("b"), true);
  EXPECT_EQ(fields.Float("f"), 0.5f);
  EXPECT_EQ(fields.Integer("i", -3, 3), -3);
  EXPECT_EQ(fields.Unsigned("u"), 7u);
  EXPECT_EQ(fields.Seed("seed"), UINT64_MAX);
  EXPECT_EQ(fields.Seed("i"), UINT64_MAX - 2);
  EXPECT_NE(fields.Object("o"), nullptr);
  EXPECT_NE(fields.Array("a"), nullptr);
  EXPECT_EQ(fields.Any("none"), nullptr);
  EXPECT_EQ(fields.Float("none"), std::nullopt);
  EXPECT_EQ(fields.String("absent"), std::nullopt);
  EXPECT_EQ(fields.Float("big"), INFINITY);
  EXPECT_EQ(fields.Float("low"), -INFINITY);
  EXPECT_TRUE(fields.Finish().ok());
}

TEST(JsonFieldsTest, NamesTheWrongType) {
  const Json json = Json::parse(R"({"s":1,"b":"true","f":"1","i":1.0,"o":[],"a":{}})");
  const auto error = [&json](auto read) {
    JsonFields fields(json, "at.");
    read(fields);
    const absl::Status status = fields.Finish();
    EXPECT_EQ(ErrorField(status).substr(0, 3), "at.");
    return std::string(status.message());
  };
  EXPECT_EQ(error([](JsonFields& f) { f.String("s"); }), "at.s must be a string, not number");
  EXPECT_EQ(error([](JsonFields& f) { f.Bool("b"); }), "at.b must be a boolean, not string");
  EXPECT_EQ(error([](JsonFields& f) { f.Float("f"); }), "at.f must be a number, not string");
  EXPECT_EQ(error([](JsonFields& f) { f.Integer("i", 0, 9); }),
            "at.i must be an integer, not number");
  EXPECT_EQ(error([](JsonFields& f) { f.Seed("i"); }), "at.i must be an integer, not number");
  EXPECT_EQ(error([](JsonFields& f) { f.Object("o"); }), "at.o must be an object, not array");
  EXPECT_EQ(error([](JsonFields& f) { f.Array("a"); }), "at.a must be an array, not object");
}

TEST(JsonFieldsTest, HoldsIntegersAgainstTheirLimits) {
  for (const char* value : {"-1", "4294967296", "18446744073709551615", "-9223372036854775808"}) {
    const Json json = Json::parse(std::string("{\"n\":") + value + "}");
    JsonFields fields(json, "");
    EXPECT_EQ(fields.Unsigned("n"), std::nullopt);
    EXPECT_EQ(fields.Finish().message(), std::string("n ") + value + " is outside 0 to 4294967295");
  }
}

TEST(JsonFieldsTest, UnknownMembersAreNamedUnlessNull) {
  const Json json = Json::parse(R"({"a":1,"typo":2,"other":null})");
  JsonFields fields(json, "");
  fields.Unsigned("a");
  EXPECT_EQ(fields.Finish().message(), "typo is unknown, or not supported by this server");
  EXPECT_EQ(ErrorField(fields.Finish()), "typo");
}

TEST(JsonFieldsTest, TheFirstErrorCounts) {
  const Json json = Json::parse(R"({"a":"x","b":"y"})");
  JsonFields fields(json, "");
  fields.Unsigned("a");
  fields.Unsigned("b");
  EXPECT_EQ(ErrorField(fields.Finish()), "a");
}

TEST(JsonFieldsTest, WhatIsNoObjectHasNoMembers) {
  const Json json = Json::array({1});
  JsonFields fields(json, "messages[0].");
  EXPECT_EQ(fields.String("role"), std::nullopt);
  EXPECT_EQ(fields.Finish().message(), "messages[0] must be an object, not array");
}

TEST(JsonFieldsTest, ABodyIsOneObject) {
  EXPECT_TRUE(ParseBody("{}").ok());
  for (const char* body : {"",
                           "[]",
                           "1",
                           "{",
                           "{}x",
                           "{\"a\":1,\"a\":2}",
                           "{\"a\":NaN}",
                           "{\"a\":1e999}",
                           "{\"a\":\"\xff\"}",
                           "{\"a\":\"\\ud800\"}",
                           "nul"}) {
    EXPECT_EQ(ErrorReason(ParseBody(body).status()), "INVALID_JSON") << body;
  }
  EXPECT_FALSE(ParseBody("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}").ok());
  EXPECT_TRUE(ParseBody("{\"a\":" + std::string(50, '[') + std::string(50, ']') + "}").ok());
}

}  // namespace
}  // namespace asynctls
