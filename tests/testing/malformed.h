// SPDX-License-Identifier: Apache-2.0
// Random requests that no client should send: valid messages with broken bytes, and messages that
// parse but hold whatever fits their fields.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace asynctls::testing {

using Rng = std::mt19937_64;

template <class T>
const T& Pick(const std::vector<T>& from, Rng& rng) {
  return from[rng() % from.size()];
}

// One to four edits: flipped bits, new bytes, cuts, repeats.
inline std::string Mutate(std::string bytes, Rng& rng) {
  for (uint64_t edits = 1 + rng() % 4; edits > 0 && !bytes.empty(); --edits) {
    const size_t at = rng() % bytes.size();
    switch (rng() % 5) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng() % 8));
        break;
      case 1:
        bytes[at] = static_cast<char>(rng());
        break;
      case 2:
        bytes.insert(at, 1 + rng() % 8, static_cast<char>(rng()));
        break;
      case 3:
        bytes.erase(at, 1 + rng() % 8);
        break;
      default:
        bytes += bytes.substr(at, 1 + rng() % 32);
    }
  }
  return bytes;
}

inline std::string RandomText(Rng& rng) {
  static const std::vector<std::string> texts = {"",
                                                 "a",
                                                 "1",
                                                 "-1",
                                                 "nan",
                                                 "1e999",
                                                 "true",
                                                 "null",
                                                 "{}",
                                                 "[]",
                                                 "{\"max_tokens\":3,\"n\":\"x\"}",
                                                 "{\"stop\":[[[[]]]]}",
                                                 std::string(1, '\0'),
                                                 "\xef\xbf\xbd\xe2\x80\xae",
                                                 "<|im_end|>",
                                                 std::string(3000, ' '),
                                                 std::string(300, 'x')};
  return Pick(texts, rng);
}

template <class T>
T RandomInt(Rng& rng) {
  using Limits = std::numeric_limits<T>;
  const std::vector<T> values = {
      0, 1, 2, 3, 20, 100, 2047, 2048, Limits::max(), Limits::min(), static_cast<T>(-1)};
  return Pick(values, rng);
}

inline double RandomReal(Rng& rng) {
  static const std::vector<double> values = {
      0, -0.0, 0.5, 1, 2, -1, 1e38, -1e38, 1e300, 1e-40, NAN, INFINITY, -INFINITY};
  return Pick(values, rng);
}

inline void FillRandom(google::protobuf::Message& message, Rng& rng, int depth);

inline void SetRandom(google::protobuf::Message& message,
                      const google::protobuf::FieldDescriptor* field,
                      Rng& rng,
                      int depth) {
  using Field = google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& r = *message.GetReflection();
  const bool many = field->is_repeated();
  switch (field->cpp_type()) {
    case Field::CPPTYPE_MESSAGE:
      if (depth > 0) {
        FillRandom(
            many ? *r.AddMessage(&message, field) : *r.MutableMessage(&message, field), rng, depth);
      }
      return;
    case Field::CPPTYPE_STRING: {
      const std::string text = RandomText(rng);
      return many ? r.AddString(&message, field, text) : r.SetString(&message, field, text);
    }
    case Field::CPPTYPE_BOOL:
      return many ? r.AddBool(&message, field, rng() % 2) : r.SetBool(&message, field, rng() % 2);
    case Field::CPPTYPE_INT32: {
      const auto value = RandomInt<int32_t>(rng);
      return many ? r.AddInt32(&message, field, value) : r.SetInt32(&message, field, value);
    }
    case Field::CPPTYPE_INT64: {
      const auto value = RandomInt<int64_t>(rng);
      return many ? r.AddInt64(&message, field, value) : r.SetInt64(&message, field, value);
    }
    case Field::CPPTYPE_UINT32: {
      const auto value = RandomInt<uint32_t>(rng);
      return many ? r.AddUInt32(&message, field, value) : r.SetUInt32(&message, field, value);
    }
    case Field::CPPTYPE_UINT64: {
      const auto value = RandomInt<uint64_t>(rng);
      return many ? r.AddUInt64(&message, field, value) : r.SetUInt64(&message, field, value);
    }
    case Field::CPPTYPE_FLOAT: {
      const auto value = static_cast<float>(RandomReal(rng));
      return many ? r.AddFloat(&message, field, value) : r.SetFloat(&message, field, value);
    }
    case Field::CPPTYPE_DOUBLE: {
      const double value = RandomReal(rng);
      return many ? r.AddDouble(&message, field, value) : r.SetDouble(&message, field, value);
    }
    case Field::CPPTYPE_ENUM: {
      const int value = static_cast<int>(rng() % 8) - 1;
      return many ? r.AddEnumValue(&message, field, value) : r.SetEnumValue(&message, field, value);
    }
  }
}

// Sets about one field in eight, and two at least.
inline void FillRandom(google::protobuf::Message& message, Rng& rng, int depth = 4) {
  const google::protobuf::Descriptor& type = *message.GetDescriptor();
  if (type.field_count() == 0) return;
  for (int i = 0; i < type.field_count() / 8 + 2; ++i) {
    SetRandom(message, type.field(static_cast<int>(rng() % type.field_count())), rng, depth - 1);
  }
}

}  // namespace asynctls::testing
