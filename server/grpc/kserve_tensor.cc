// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/kserve_tensor.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "absl/strings/string_view.h"
#include "engine/text/utf8.h"
#include "server/frontend/errors.h"

namespace asynctls {
namespace {

using Input = inference::ModelInferRequest::InferInputTensor;

// Numbers are little-endian on the wire, as on every machine this is built for.
template <class T>
Json RawNumbers(absl::string_view bytes) {
  Json out = Json::array();
  for (size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    out.push_back(value);
  }
  return out;
}

// Each string after its length in 4 bytes.
absl::StatusOr<Json> RawStrings(const std::string& name, absl::string_view bytes) {
  Json out = Json::array();
  while (!bytes.empty()) {
    uint32_t size = 0;
    if (bytes.size() >= sizeof(size)) std::memcpy(&size, bytes.data(), sizeof(size));
    if (bytes.size() < sizeof(size) || bytes.size() - sizeof(size) < size) {
      return InvalidField(name, ": the raw bytes end within a string");
    }
    if (out.size() == static_cast<size_t>(kMaxTensorElements)) {
      return InvalidField(name, " has more than ", kMaxTensorElements, " elements");
    }
    out.push_back(std::string(bytes.substr(sizeof(size), size)));
    bytes.remove_prefix(sizeof(size) + size);
  }
  return out;
}

template <class List>
Json FromList(const List& list) {
  Json out = Json::array();
  for (const auto& value : list) out.push_back(value);
  return out;
}

size_t WidthOf(absl::string_view type) {
  if (type == "BOOL" || type == "INT8" || type == "UINT8") return 1;
  if (type == "INT16" || type == "UINT16") return 2;
  if (type == "INT32" || type == "UINT32" || type == "FP32") return 4;
  if (type == "INT64" || type == "UINT64" || type == "FP64") return 8;
  return 0;
}

Json RawOf(absl::string_view type, absl::string_view bytes) {
  if (type == "INT8") return RawNumbers<int8_t>(bytes);
  if (type == "UINT8") return RawNumbers<uint8_t>(bytes);
  if (type == "INT16") return RawNumbers<int16_t>(bytes);
  if (type == "UINT16") return RawNumbers<uint16_t>(bytes);
  if (type == "INT32") return RawNumbers<int32_t>(bytes);
  if (type == "UINT32") return RawNumbers<uint32_t>(bytes);
  if (type == "FP32") return RawNumbers<float>(bytes);
  if (type == "INT64") return RawNumbers<int64_t>(bytes);
  if (type == "UINT64") return RawNumbers<uint64_t>(bytes);
  if (type == "FP64") return RawNumbers<double>(bytes);
  Json out = Json::array();  // BOOL
  for (char byte : bytes) out.push_back(byte != 0);
  return out;
}

Json ContentsOf(absl::string_view type, const inference::InferTensorContents& contents) {
  if (type == "BYTES") return FromList(contents.bytes_contents());
  if (type == "BOOL") return FromList(contents.bool_contents());
  if (type == "INT64") return FromList(contents.int64_contents());
  if (type == "UINT64") return FromList(contents.uint64_contents());
  if (type == "FP32") return FromList(contents.fp32_contents());
  if (type == "FP64") return FromList(contents.fp64_contents());
  if (type[0] == 'U') return FromList(contents.uint_contents());
  return FromList(contents.int_contents());
}

int64_t ContentsSize(const inference::InferTensorContents& c) {
  return int64_t{c.bytes_contents_size()} + c.bool_contents_size() + c.int_contents_size() +
         c.int64_contents_size() + c.uint_contents_size() + c.uint64_contents_size() +
         c.fp32_contents_size() + c.fp64_contents_size();
}

// The product of the dimensions. Errors: one below 1, or more than kMaxTensorElements.
absl::StatusOr<int64_t> Elements(const Input& input) {
  int64_t elements = 1;
  for (int64_t dim : input.shape()) {
    if (dim < 1 || dim > kMaxTensorElements || elements * dim > kMaxTensorElements) {
      return InvalidField(
          input.name(), ": the shape must give 1 to ", kMaxTensorElements, " elements");
    }
    elements *= dim;
  }
  return elements;
}

absl::StatusOr<Json> ReadRaw(const Input& input, const std::string& bytes) {
  if (input.has_contents()) {
    return InvalidField(input.name(), " has contents beside raw_input_contents");
  }
  if (input.datatype() == "BYTES") return RawStrings(input.name(), bytes);
  const size_t width = WidthOf(input.datatype());
  if (bytes.size() % width != 0 || bytes.size() / width > kMaxTensorElements) {
    return InvalidField(input.name(), " has ", bytes.size(), " raw bytes, which fit no shape");
  }
  return RawOf(input.datatype(), bytes);
}

template <class T>
void AddOutput(const char* name,
               const char* datatype,
               const std::vector<T>& values,
               bool raw,
               inference::ModelInferResponse& out) {
  inference::ModelInferResponse::InferOutputTensor& tensor = *out.add_outputs();
  tensor.set_name(name);
  tensor.set_datatype(datatype);
  tensor.add_shape(static_cast<int64_t>(values.size()));
  std::string* bytes = raw ? out.add_raw_output_contents() : nullptr;
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, std::string>) {
      const auto size = static_cast<uint32_t>(value.size());
      if (raw) bytes->append(reinterpret_cast<const char*>(&size), sizeof(size)).append(value);
      if (!raw) tensor.mutable_contents()->add_bytes_contents(value);
    } else {
      if (raw) bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
      if (raw) continue;
      if constexpr (std::is_same_v<T, float>) tensor.mutable_contents()->add_fp32_contents(value);
      if constexpr (!std::is_same_v<T, float>) tensor.mutable_contents()->add_uint_contents(value);
    }
  }
}

}  // namespace

absl::StatusOr<Json> ReadTensor(const inference::ModelInferRequest& request, int index) {
  const Input& input = request.inputs(index);
  if (input.datatype() != "BYTES" && WidthOf(input.datatype()) == 0) {
    return InvalidField(
        input.name(), ": datatype '", input.datatype().substr(0, 16), "' is not understood");
  }
  const absl::StatusOr<int64_t> elements = Elements(input);
  if (!elements.ok()) return elements.status();
  absl::StatusOr<Json> values;
  if (!request.raw_input_contents().empty()) {
    values = ReadRaw(input, request.raw_input_contents(index));
  } else if (ContentsSize(input.contents()) != *elements) {
    return InvalidField(input.name(),
                        ": the shape has ",
                        *elements,
                        " elements, contents ",
                        ContentsSize(input.contents()));
  } else {
    values = ContentsOf(input.datatype(), input.contents());
  }
  if (!values.ok()) return values.status();
  if (values->size() != static_cast<size_t>(*elements)) {
    return InvalidField(
        input.name(), ": the shape has ", *elements, " elements, the tensor ", values->size());
  }
  for (const Json& value : *values) {
    if (!value.is_string()) continue;
    const auto& text = value.get_ref<const std::string&>();
    const size_t valid = FirstInvalidUtf8(text);
    if (valid < text.size()) return InvalidField(input.name(), " is not UTF-8 at byte ", valid);
  }
  return values;
}

absl::StatusOr<Json> ReadParameter(const std::string& name,
                                   const inference::InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case inference::InferParameter::kBoolParam:
      return Json(parameter.bool_param());
    case inference::InferParameter::kInt64Param:
      return Json(parameter.int64_param());
    case inference::InferParameter::kStringParam:
      return Json(parameter.string_param());
    case inference::InferParameter::kDoubleParam:
      return Json(parameter.double_param());
    case inference::InferParameter::kUint64Param:
      return Json(parameter.uint64_param());
    case inference::InferParameter::PARAMETER_CHOICE_NOT_SET:
      break;
  }
  return InvalidField(name, " has no value");
}

void AddStrings(const char* name,
                const std::vector<std::string>& values,
                bool raw,
                inference::ModelInferResponse& out) {
  AddOutput(name, "BYTES", values, raw, out);
}

void AddFloats(const char* name,
               const std::vector<float>& values,
               bool raw,
               inference::ModelInferResponse& out) {
  AddOutput(name, "FP32", values, raw, out);
}

void AddUints(const char* name,
              const std::vector<uint32_t>& values,
              bool raw,
              inference::ModelInferResponse& out) {
  AddOutput(name, "UINT32", values, raw, out);
}

}  // namespace asynctls
