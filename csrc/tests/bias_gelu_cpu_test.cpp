// bias_gelu on the CPU against the definition in float64, on every instruction set of this CPU.
#include "bias_gelu_cpu.h"
#include "bias_gelu_harness.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::bias_gelu::testing;

// Calls check(launch) for every instruction set and for 1 and 3 threads; launch(problem) runs the op that way. An
// instruction set that this CPU lacks falls back to the best one it has.
template <class Check>
void on_every_isa(const Check& check) {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    for (const int threads : {1, 3}) check([=](const BiasGelu& problem) { bias_gelu_cpu(problem, threads, isa); });
}

TEST(every_width_and_type_gives_the_gelu_of_the_sum) {
  on_every_isa([](const Launch& launch) {
    const struct {
      int rows, columns;
    } sizes[] = {{0, 8}, {1, 1}, {5, 31}, {9, 96}, {70, 301}};
    for (const auto& size : sizes)
      for (const DType type : kTypes)
        for (const DType bias_type : kTypes) compare({size.rows, size.columns, type, bias_type, 3, 1}, launch);
  });
}

TEST(large_and_tiny_numbers) {
  on_every_isa([](const Launch& launch) {
    for (const float magnitude : {1e-30f, 1e-4f, 1e4f, 1e30f})
      compare({5, 67, DType::float32, DType::float32, 0, 0, magnitude}, launch);
  });
}

TEST(every_number_from_minus_13_to_13_is_precise) {
  on_every_isa([](const Launch& launch) { every_number_from_minus_13_to_13_is_precise(launch); });
}
TEST(nan_and_infinity_change_no_other_element) {
  on_every_isa([](const Launch& launch) { nan_and_infinity_change_no_other_element(launch); });
}
TEST(y_may_overwrite_x) {
  on_every_isa([](const Launch& launch) { y_may_overwrite_x(launch); });
}

}  // namespace

int main() { return check::run(); }
