// The kernels of csrc/cuda/add_layer_norm.cu, executed on the host (device_host.h), against the definition in float64.
// As in the launcher, add_layer_norm_plan.h picks kernel and grid.
#include <map>
#include <string>

#include "add_layer_norm.cu"
#include "add_layer_norm_harness.h"
#include "add_layer_norm_plan.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::add_layer_norm;
using namespace seed_fast::add_layer_norm::testing;

const std::map<std::string, void (*)(Problem)> kKernels = {
    {"add_layer_norm_float32_kernel", add_layer_norm_float32_kernel},
    {"add_layer_norm_float16_kernel", add_layer_norm_float16_kernel},
    {"add_layer_norm_bfloat16_kernel", add_layer_norm_bfloat16_kernel},
    {"add_layer_norm_wide_float32_kernel", add_layer_norm_wide_float32_kernel},
    {"add_layer_norm_wide_float16_kernel", add_layer_norm_wide_float16_kernel},
    {"add_layer_norm_wide_bfloat16_kernel", add_layer_norm_wide_bfloat16_kernel},
    {"add_layer_norm_any_kernel", add_layer_norm_any_kernel},
};

// Runs the problem as the launcher would, with the order of threads that the seed determines.
void launch_in_order(const AddLayerNorm& problem, unsigned seed) {
  const Plan plan(problem);
  const auto kernel = kKernels.at(plan.kernel);
  device::host::launch(static_cast<int>(plan.blocks), 1, plan.threads, seed, [&] { kernel(plan.problem); });
}
void launch(const AddLayerNorm& problem) { launch_in_order(problem, 1); }

const DType kTypes[] = {DType::float32, DType::float16, DType::bfloat16};

// The name of the kernel that the plan picks.
std::string planned_kernel(const Case& c) {
  Run run(c);
  return Plan(run.problem()).kernel;
}

TEST(every_width_and_type_gives_the_sum_and_its_norm) {
  const struct {
    int rows, columns;
  } sizes[] = {{1, 1},    {3, 4},    {5, 31},   {2, 32},   {9, 96},   {2, 768},
               {3, 1408}, {2, 2048}, {2, 2052}, {1, 8192}, {1, 8196}, {2, 3001}};
  for (const auto& size : sizes) {
    for (const DType type : kTypes) {
      for (const bool post_norm : {false, true}) {
        compare({size.rows, size.columns, DType::float32, type, type, post_norm}, launch);
      }
    }
  }
}

TEST(every_mix_of_types_is_taken) {
  for (const DType x : kTypes) {
    for (const DType delta : kTypes) {
      for (const DType y : kTypes) compare({3, 40, x, delta, y, true}, launch), compare({3, 40, x, delta, y}, launch);
    }
  }
}

TEST(rows_need_not_be_aligned_or_adjoining) {
  for (const DType type : kTypes) {
    for (const int gap : {0, 1, 8}) {
      for (const int offset : {0, 1, 8}) {
        compare({3, 96, DType::float32, type, type, false, gap, offset}, launch);
        compare({2, 2500, DType::float32, type, type, false, gap, offset}, launch);
      }
    }
  }
}

TEST(each_problem_gets_its_kernel) {
  CHECK_EQUAL(planned_kernel({4, 1408, DType::float32, DType::float16, DType::float16}),
              "add_layer_norm_float16_kernel");
  CHECK_EQUAL(planned_kernel({4, 768, DType::float32, DType::bfloat16, DType::bfloat16}),
              "add_layer_norm_bfloat16_kernel");
  CHECK_EQUAL(planned_kernel({4, 2048}), "add_layer_norm_float32_kernel");
  CHECK_EQUAL(planned_kernel({4, 2052}), "add_layer_norm_wide_float32_kernel");
  CHECK_EQUAL(planned_kernel({4, 8192}), "add_layer_norm_wide_float32_kernel");
  for (const Case& c : {Case{4, 8196}, Case{4, 97}, Case{4, 96, DType::float16, DType::float16, DType::float16},
                        Case{4, 96, DType::float32, DType::float16, DType::float32},
                        Case{4, 96, DType::float32, DType::float32, DType::float32, false, 1},
                        Case{4, 96, DType::float32, DType::float32, DType::float32, false, 0, 1}}) {
    CHECK_EQUAL(planned_kernel(c), "add_layer_norm_any_kernel");
  }
}

TEST(large_tiny_and_far_from_zero) {
  for (const int columns : {96, 97, 1408, 2560}) {
    for (const float magnitude : {1e-4f, 1e4f, 1e15f}) {
      compare({3, columns, DType::float32, DType::float32, DType::float32, false, 0, 0, magnitude}, launch);
    }
    // Rows with mean 4096: differences from the mean are exact in float32, so the norm must be as precise as without
    // the offset.
    compare({3, columns, DType::float32, DType::float32, DType::float32, false, 0, 0, 1, 4096}, launch);
  }
}

TEST(constant_rows_have_variance_zero) { testing::constant_rows_have_variance_zero(launch); }
TEST(the_stream_may_overwrite_x) { testing::the_stream_may_overwrite_x(launch); }
TEST(a_null_stream_is_not_written) { testing::a_null_stream_is_not_written(launch); }
TEST(rows_with_nan_change_no_other_row) { testing::rows_with_nan_change_no_other_row(launch); }

TEST(no_order_of_threads_changes_a_bit) {
  for (const int columns : {97, 1408, 2560}) {
    Run first({5, columns});
    launch_in_order(first.problem(), 0);
    for (unsigned seed = 1; seed < 5; ++seed) {
      Run again({5, columns});
      launch_in_order(again.problem(), seed);
      CHECK(again.y.words == first.y.words);
      CHECK(again.stream.words == first.stream.words);
    }
  }
}

}  // namespace

int main() { return check::run(); }
