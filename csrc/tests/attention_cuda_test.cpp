// The kernels of csrc/cuda/attention*.cu, executed on the host (device_host.h), against the definition in float64.
#include "attention_cuda_harness.h"

#include <set>

namespace {

using namespace seed_fast;
using namespace seed_fast::attention;
using namespace seed_fast::attention::testing;

constexpr DType kDtypes[] = {DType::float32, DType::float16};

TEST(shapes_of_the_models) {
  for (DType dtype : kDtypes) {
    check_case({{2, 32, 32, 2, 64}, dtype, true});
    check_case({{1, 32, 32, 3, 64}, dtype, false});
    check_case({{2, 32, 257, 1, 64}, dtype, false});
    check_case({{1, 257, 257, 1, 88}, dtype, false, 0.1066f});
  }
}

TEST(every_kernel_runs_at_its_full_width_and_below) {
  std::set<std::string> ran;
  for (DType dtype : kDtypes)
    for (int width : {16, 40, 64, 72, 88, 96, 128})
      for (const auto& [lq, lk] : {std::pair{32, 32}, {33, 70}, {100, 50}}) {
        ran.insert(check_case({{1, lq, lk, 1, width}, dtype}));
        ran.insert(check_case({{1, lq, lk, 1, width}, dtype, true, 0.125f, 1, 0, 1}));
      }
  CHECK_EQUAL(ran.size(), kernels().size());
}

TEST(odd_lengths_with_and_without_causality) {
  for (DType dtype : kDtypes)
    for (bool causal : {false, true})
      for (const auto& [lq, lk] : {std::pair{1, 1},
                                   {1, 300},
                                   {3, 7},
                                   {31, 33},
                                   {33, 31},
                                   {65, 97},
                                   {97, 65},
                                   {40, 289},
                                   {130, 20},
                                   {5, 193}}) {
        check_case({{1, lq, lk, 1, 24}, dtype, causal});
      }
}

TEST(rows_with_gaps_and_unaligned_rows) {
  for (DType dtype : kDtypes)
    for (int gap : {8, 3})
      for (int offset : {0, 1, 8}) check_case({{2, 19, 37, 3, 32}, dtype, true, 0.125f, 1, gap, offset});
}

TEST(alignment_decides_about_tensor_cores_alone) {
  for (int gap : {0, 4, 8}) {
    const std::string kernel = check_case({{2, 9, 9, 2, 16}, DType::float16, false, 0.125f, 1, gap});
    CHECK_EQUAL(kernel,
                gap == 4 ? "attention_fwd_float16_unaligned_w32_kernel" : "attention_fwd_sm70_keys32_w32_kernel");
  }
}

TEST(one_unaligned_stride_of_one_operand_is_enough_unless_its_axis_has_one_element) {
  for (DType dtype : kDtypes) {
    // True if the plan picks a kernel for unaligned operands, where `operand` (0: q, 1: k, 2: v) has this address and
    // these strides, and both others are aligned.
    const auto loose = [&](int64_t B, int64_t L, int64_t H, int operand, int64_t data, int64_t b, int64_t l,
                           int64_t h) {
      AttentionTensor x[3];
      for (AttentionTensor& tensor : x) tensor = {nullptr, 64, 64, 64, 1};
      x[operand] = {reinterpret_cast<const void*>(data), b, l, h, 1};
      const Plan plan(x[0], x[1], x[2], nullptr, dtype, B, L, L, H, 64, false, 1);
      return plan.kernel.find("unaligned") != std::string::npos;
    };
    for (int operand : {0, 1, 2}) {
      CHECK(!loose(2, 2, 2, operand, 16, 72, 80, 88));
      CHECK(loose(2, 2, 2, operand, 8, 64, 64, 64));
      CHECK(loose(2, 2, 2, operand, 16, 66, 64, 64) && !loose(1, 2, 2, operand, 16, 66, 64, 64));
      CHECK(loose(2, 2, 2, operand, 16, 64, 66, 64) && !loose(2, 1, 2, operand, 16, 64, 66, 64));
      CHECK(loose(2, 2, 2, operand, 16, 64, 64, 66) && !loose(2, 2, 1, operand, 16, 64, 64, 66));
    }
  }
}

TEST(large_and_tiny_scores) {
  for (DType dtype : kDtypes)
    for (float magnitude : {0.0f, 1e-3f, 100.0f, 3000.0f})
      for (int lq : {20, 97}) check_case({{1, lq, 300, 1, 32}, dtype, false, 0.125f, magnitude});
  check_case({{1, 20, 300, 1, 32}, DType::float32, false, 0.125f, 1e30f});
}

// Sets q and k to 0 except for their first column, so that the score of query i and key l is exactly query * key(l).
void set_scores(Inputs& in, float query, const std::function<float(int64_t)>& key) {
  for (Operand* x : {&in.q, &in.k})
    for (int64_t l = 0; l < x->L; ++l)
      for (int64_t h = 0; h < x->H; ++h)
        for (int64_t d = 0; d < x->D; ++d) x->set(0, l, h, d, d > 0 ? 0 : x == &in.q ? query : key(l));
}

constexpr std::pair<int, int> kLengths[] = {{32, 32}, {32, 257}, {97, 130}};

TEST(large_scores_that_differ_by_little_lose_no_bits) {
  for (DType dtype : kDtypes)
    for (const auto& [lq, lk] : kLengths) {
      // Scaled scores of 1020 .. 1027; then 512 .. 568 in steps of 8; then negative ones, by the sign of q and of the
      // scale.
      const auto near = [](int64_t l) { return static_cast<float>(1024 + l * 5 % 8 - 4); };
      check_case({{1, lq, lk, 1, 32}, dtype, true, 0x1p-10f}, [&](Inputs& in) { set_scores(in, 1024, near); });
      check_case({{1, lq, lk, 1, 64}, dtype, false, 0.125f},
                 [](Inputs& in) { set_scores(in, 64, [](int64_t l) { return static_cast<float>(64 + l * 3 % 8); }); });
      check_case({{1, lq, lk, 1, 32}, dtype, false, 0x1p-10f}, [&](Inputs& in) { set_scores(in, -1024, near); });
      check_case({{1, lq, lk, 1, 32}, dtype, false, -0x1p-10f}, [&](Inputs& in) { set_scores(in, 1024, near); });
    }
}

TEST(scores_that_grow_fall_or_share_an_offset) {
  for (DType dtype : kDtypes)
    for (const auto& [lq, lk] : kLengths)
      for (float slope : {8.0f, -8.0f, 64.0f}) {
        const auto line = [&, lk = lk](int64_t l) { return slope * static_cast<float>(l) / static_cast<float>(lk); };
        check_case({{1, lq, lk, 1, 64}, dtype, false}, [&](Inputs& in) { set_scores(in, 3, line); });
        check_case({{1, lq, lk, 2, 64}, dtype, false}, [&](Inputs& in) {
          for (Operand* x : {&in.q, &in.k})
            for (int64_t l = 0; l < x->L; ++l)
              for (int64_t h = 0; h < 2; ++h) x->set(0, l, h, 0, x == &in.q ? 10 : slope);
        });
      }
}

TEST(one_key_has_all_the_weight_or_all_have_the_same) {
  for (DType dtype : kDtypes)
    for (const auto& [lq, lk] : kLengths)
      for (float peak : {0.0f, 20.0f, 300.0f})
        check_case({{1, lq, lk, 1, 32}, dtype, false, 1},
                   [&, lk = lk](Inputs& in) { set_scores(in, 1, [&](int64_t l) { return l == lk / 2 ? peak : 0; }); });
}

TEST(long_rows_of_values_of_one_sign) {
  for (DType dtype : kDtypes)
    for (const auto& [lq, lk] : {std::pair{32, 1100}, {70, 700}})
      check_case({{1, lq, lk, 1, 32}, dtype, false}, [](Inputs& in) {
        for (int64_t l = 0; l < in.v.L; ++l)
          for (int64_t d = 0; d < 32; ++d) in.v.set(0, l, 0, d, std::abs(in.v.get(0, l, 0, d)));
      });
}

TEST(any_shape_and_scale) {
  std::mt19937 random(5);
  // A random integer of low .. high.
  const auto draw = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
  };
  for (int i = 0; i < 60; ++i) {
    const float magnitude = std::ldexp(1.0f, draw(-3, 3));
    check_case({{1, draw(20, 110), draw(1, 300), 1, 8 * draw(2, 16)},
                kDtypes[i % 3 == 0],
                draw(0, 1) == 1,
                draw(0, 3) == 0 ? -0.3f : 0.125f,
                magnitude,
                8 * draw(0, 1)});
  }
}

TEST(negative_and_zero_scale) {
  for (DType dtype : kDtypes)
    for (float scale : {-0.5f, 0.0f})
      for (int lq : {20, 97}) check_case({{1, lq, 300, 1, 32}, dtype, true, scale});
}

TEST(no_order_of_threads_changes_a_bit) {
  for (DType dtype : kDtypes)
    for (const auto& [lq, lk] : {std::pair{32, 32}, {20, 250}, {100, 40}}) {
      Case c{{1, lq, lk, 1, 40}, dtype, lq != 20};
      const Inputs in(c);
      const Operand expected = attend(c, in);
      for (c.seed = 1; c.seed < 7; ++c.seed) {
        const Operand got = attend(c, in);
        CHECK(got.floats == expected.floats && got.halves == expected.halves);
      }
    }
}

// Indices of the queries whose output is NaN; fails if an output is NaN only in part.
std::vector<int> nan_rows(const Case& c, const Inputs& in) {
  const Operand out = attend(c, in);
  std::vector<int> rows;
  for (int i = 0; i < c.shape.Lq; ++i) {
    int count = 0;
    for (int d = 0; d < c.shape.D; ++d) count += std::isnan(out.get(0, i, 0, d));
    CHECK(count == 0 || count == c.shape.D);
    if (count) rows.push_back(i);
  }
  return rows;
}

TEST(a_query_without_finite_scores_gives_nan_and_leaves_the_others_alone) {
  for (DType dtype : kDtypes)
    for (int lk : {20, 100, 300})
      for (float value : {kNan, kInf, -kInf}) {
        const Case c{{1, 40, lk, 1, 16}, dtype};
        Inputs in(c);
        for (int d = 0; d < 16; ++d) in.q.set(0, 7, 0, d, value);
        CHECK(nan_rows(c, in) == std::vector<int>{7});
      }
}

TEST(keys_that_causality_hides_never_matter) {
  for (DType dtype : kDtypes)
    for (int lk : {32, 90, 300}) {
      const Case c{{1, 90, lk, 1, 16}, dtype, true};
      Inputs in(c);
      for (int d = 0; d < 16; ++d) in.k.set(0, 31, 0, d, kNan);
      std::vector<int> expected;
      for (int i = 31; i < 90; ++i) expected.push_back(i);
      CHECK(nan_rows(c, in) == expected);
    }
}

// Every key but the last has score -inf and so weight 0, also when it is the first that a query meets: the output is
// the last key's value.
TEST(scores_of_minus_infinity_weigh_nothing) {
  for (DType dtype : kDtypes)
    for (int lk : {20, 100, 300}) {
      const Case c{{1, 40, lk, 1, 16}, dtype};
      Inputs in(c);
      for (int i = 0; i < 40; ++i) in.q.set(0, i, 0, 0, 1);
      for (int j = 0; j + 1 < lk; ++j) in.k.set(0, j, 0, 0, -kInf);
      const Operand out = attend(c, in);
      for (int i = 0; i < 40; ++i)
        for (int d = 0; d < 16; ++d) CHECK_EQUAL(out.get(0, i, 0, d), in.v.get(0, lk - 1, 0, d));
    }
}

TEST(plan_covers_every_query_once) {
  for (DType dtype : kDtypes)
    for (int64_t lq : {1, 32, 33, 64, 65, 257, 1000})
      for (int64_t lk : {1, 32, 33, 288, 289}) {
        const AttentionTensor x{nullptr, 0, 0, 0, 1};
        const Plan plan(x, x, x, nullptr, dtype, 3, lq, lk, 5, 64, false, 1);
        CHECK(kernels().count(plan.kernel));
        const int64_t rows = dtype == DType::float32        ? (lq <= 64 ? 32 : 96)
                             : plan.kernel.find("many") + 1 ? kManyRows
                                                            : kFewRows;
        CHECK_EQUAL(plan.problem.query_blocks, (lq + rows - 1) / rows);
        CHECK_EQUAL(plan.blocks, 15 * static_cast<int64_t>(plan.problem.query_blocks));
      }
}

}  // namespace

int main() { return check::run(); }
