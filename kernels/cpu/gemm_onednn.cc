// SPDX-License-Identifier: Apache-2.0
// Matrix products by oneDNN, for machines with AVX-512 but without AMX.
#include <algorithm>
#include <cstring>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>

#include "kernels/cpu/gemm.h"

namespace asynctls {
namespace {

constexpr int64_t kFewRows = 16;
constexpr int64_t kManyRows = 64;

// A primitive with its memory objects, whose pointers change from call to call.
struct Cached {
  dnnl::matmul primitive;
  dnnl::memory x, w, out;
};

}  // namespace

struct OneDnn::Impl {
  using Shape = std::tuple<int64_t, int64_t, int64_t, bool>;  // rows, columns, depth, float out

  Cached& Find(int64_t rows, const Product& p) {
    const bool wide = p.out_float != nullptr;
    const auto [at, is_new] = cache.try_emplace(Shape(rows, p.columns, p.depth, wide));
    if (is_new) {
      using Desc = dnnl::memory::desc;
      using Tag = dnnl::memory::format_tag;
      using Type = dnnl::memory::data_type;
      const Desc x({rows, p.depth}, Type::bf16, Tag::ab);
      const Desc w({p.depth, p.columns}, Type::bf16, Tag::ba);
      const Desc out({rows, p.columns}, wide ? Type::f32 : Type::bf16, Tag::ab);
      const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(x, w, out), engine);
      at->second = {.primitive = dnnl::matmul(desc),
                    .x = dnnl::memory(x, engine, nullptr),
                    .w = dnnl::memory(w, engine, nullptr),
                    .out = dnnl::memory(out, engine, nullptr)};
    }
    return at->second;
  }

  void Execute(int64_t rows, const Product& p, const bf16* x, void* out) {
    Cached& c = Find(rows, p);
    c.x.set_data_handle(const_cast<bf16*>(x));
    c.w.set_data_handle(const_cast<bf16*>(p.w));
    c.out.set_data_handle(out);
    c.primitive.execute(stream,
                        {{DNNL_ARG_SRC, c.x}, {DNNL_ARG_WEIGHTS, c.w}, {DNNL_ARG_DST, c.out}});
    stream.wait();
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Shape, Cached> cache;
};

OneDnn::OneDnn() : impl_(std::make_unique<Impl>()) {}
OneDnn::~OneDnn() = default;

bool OneDnn::usable() const { return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core; }

void OneDnn::Multiply(const Product& p, ThreadTeam& team) {
  omp_set_num_threads(team.count());
  const int64_t out_bytes = p.columns * (p.out_float != nullptr ? 4 : 2);
  char* out = p.out_float != nullptr ? reinterpret_cast<char*>(p.out_float)
                                     : reinterpret_cast<char*>(p.out_bf16);
  int64_t row = 0;
  for (; row + kManyRows <= p.rows; row += kManyRows) {
    impl_->Execute(kManyRows, p, p.x + row * p.depth, out + row * out_bytes);
  }
  for (; row + kFewRows <= p.rows; row += kFewRows) {
    impl_->Execute(kFewRows, p, p.x + row * p.depth, out + row * out_bytes);
  }
  if (row == p.rows) return;
  bf16* padded = team.scratch().Get<bf16>(0, kFewRows * p.depth);
  char* sums = team.scratch().Get<char>(1, kFewRows * out_bytes);
  std::fill_n(padded, kFewRows * p.depth, bf16{0});
  std::copy_n(p.x + row * p.depth, (p.rows - row) * p.depth, padded);
  impl_->Execute(kFewRows, p, padded, sums);
  std::memcpy(out + row * out_bytes, sums, static_cast<size_t>((p.rows - row) * out_bytes));
}

}  // namespace asynctls
