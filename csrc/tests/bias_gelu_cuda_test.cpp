// The kernels of csrc/cuda/bias_gelu.cu, executed on the host (device_host.h), against the definition in float64. As in
// the launcher, bias_gelu_plan.h picks kernel and grid.
#include <map>
#include <string>

#include "bias_gelu.cu"
#include "bias_gelu_harness.h"
#include "bias_gelu_plan.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::bias_gelu;
using namespace seed_fast::bias_gelu::testing;

const std::map<std::string, void (*)(Problem)> kKernels = {
    {"bias_gelu_float32_kernel", bias_gelu_float32_kernel},
    {"bias_gelu_float16_kernel", bias_gelu_float16_kernel},
    {"bias_gelu_bfloat16_kernel", bias_gelu_bfloat16_kernel},
    {"bias_gelu_any_kernel", bias_gelu_any_kernel},
};

// Runs the problem as the launcher would.
void launch(const BiasGelu& problem) {
  const Plan plan(problem);
  const auto kernel = kKernels.at(plan.kernel);
  device::host::launch(static_cast<int>(plan.blocks_x), static_cast<int>(plan.blocks_y), kThreads, 1,
                       [&] { kernel(plan.problem); });
}

// The name of the kernel that the plan picks.
std::string planned_kernel(const Case& c) {
  Run run(c);
  return Plan(run.problem()).kernel;
}

TEST(every_width_and_type_gives_the_gelu_of_the_sum) {
  const struct {
    int rows, columns;
  } sizes[] = {{1, 1}, {3, 8}, {5, 31}, {9, 96}, {2, 1024}, {3, 1032}, {2701, 16}};
  for (const auto& size : sizes) {
    for (const DType type : kTypes) {
      for (const DType bias_type : kTypes) compare({size.rows, size.columns, type, bias_type}, launch);
    }
  }
}

TEST(rows_need_not_be_aligned_or_adjoining) {
  for (const DType type : kTypes) {
    for (const int gap : {0, 1, 8}) {
      for (const int offset : {0, 1, 8}) compare({13, 64, type, type, gap, offset}, launch);
    }
  }
}

TEST(each_problem_gets_its_kernel) {
  CHECK_EQUAL(planned_kernel({4, 96}), "bias_gelu_float32_kernel");
  CHECK_EQUAL(planned_kernel({4, 96, DType::float16, DType::float16}), "bias_gelu_float16_kernel");
  CHECK_EQUAL(planned_kernel({4, 96, DType::bfloat16, DType::bfloat16}), "bias_gelu_bfloat16_kernel");
  for (const Case& c :
       {Case{4, 97}, Case{4, 100, DType::float16, DType::float16}, Case{4, 96, DType::float16},
        Case{4, 96, DType::float32, DType::float32, 1}, Case{4, 96, DType::float32, DType::float32, 0, 1}}) {
    CHECK_EQUAL(planned_kernel(c), "bias_gelu_any_kernel");
  }
}

TEST(a_grid_holds_any_number_of_rows) {
  for (const int64_t rows : {int64_t{1}, int64_t{257}, int64_t{16448}, int64_t{70000000}}) {
    const Plan plan(BiasGelu{nullptr, DType::float16, 6144, nullptr, DType::float16, nullptr, 6144, rows, 6144});
    CHECK_EQUAL(plan.blocks_x, 6);
    CHECK(plan.blocks_y <= 65535);
    CHECK(plan.blocks_y * plan.problem.rows_per_block >= rows);
    CHECK((plan.blocks_y - 1) * plan.problem.rows_per_block < rows);
  }
}

TEST(large_and_tiny_numbers) {
  for (const float magnitude : {1e-30f, 1e-4f, 1e4f, 1e30f}) {
    compare({5, 64, DType::float32, DType::float32, 0, 0, magnitude}, launch);
  }
}

TEST(every_number_from_minus_13_to_13_is_precise) { testing::every_number_from_minus_13_to_13_is_precise(launch); }
TEST(nan_and_infinity_change_no_other_element) { testing::nan_and_infinity_change_no_other_element(launch); }
TEST(y_may_overwrite_x) { testing::y_may_overwrite_x(launch); }

}  // namespace

int main() { return check::run(); }
