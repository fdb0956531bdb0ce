// device_host.h detects the defects that it promises to detect: each kernel below exists with a defect, which must be
// detected, and without, which must pass.
#include "device_host.h"

#include <string>
#include <vector>

#include "check.h"
#include "device.h"

using namespace seed_fast::device;

namespace {

constexpr int kThreads = 64;

// Kernel: reverses an array through shared memory. Without the barrier a thread reads an element too early.
template <bool kWithBarrier>
void reverse(const float* in, float* out) {
  SEED_FAST_SHARED(float, tile, [kThreads]);
  tile[thread_index()] = in[thread_index()];
  if (kWithBarrier) barrier();
  out[thread_index()] = tile[kThreads - 1 - thread_index()];
}

// True if the kernel gives the reversed array with this order of threads.
template <bool kWithBarrier>
bool reverses(unsigned seed) {
  std::vector<float> in(kThreads), out(kThreads), expected(kThreads);
  for (int i = 0; i < kThreads; ++i) in[i] = expected[kThreads - 1 - i] = static_cast<float>(i);
  host::launch(1, 1, kThreads, seed, [&] { reverse<kWithBarrier>(in.data(), out.data()); });
  return out == expected;
}

// True if three rotations of the tile by one element give the right values with this order of threads. Each step
// overwrites the tile that the previous step has read; the template parameter says whether a barrier separates them.
template <bool kWithBarrier>
bool rotates(unsigned seed) {
  std::vector<float> out(kThreads);
  host::launch(1, 1, kThreads, seed, [&] {
    SEED_FAST_SHARED(float, tile, [kThreads]);
    float value = static_cast<float>(thread_index());
    for (int step = 0; step < 3; ++step) {
      if (kWithBarrier) barrier();
      tile[thread_index()] = value;
      barrier();
      value = tile[(thread_index() + 1) % kThreads];
    }
    out[thread_index()] = value;
  });
  for (int i = 0; i < kThreads; ++i) {
    if (out[i] != static_cast<float>((i + 3) % kThreads)) return false;
  }
  return true;
}

// The message of the KernelError that the kernel ends with, or "".
template <class Kernel>
std::string error_of(const Kernel& kernel) {
  try {
    host::launch(1, 1, kThreads, 0, kernel);
  } catch (const host::KernelError& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(missing_barrier_after_a_write_is_caught_in_every_order) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    CHECK(reverses<true>(seed));
    CHECK(!reverses<false>(seed));
  }
}

// True if every thread reads the first value of its element. 50 shuffles lie between the write and the end of the read,
// and 50 more before the overwrite: without a barrier only a warp that runs far ahead of another overwrites too early.
template <bool kWithBarrier>
bool keeps_step(unsigned seed) {
  std::vector<int> out(kThreads);
  host::launch(1, 1, kThreads, seed, [&] {
    SEED_FAST_SHARED(int, tile, [kThreads]);
    tile[thread_index()] = 1;
    barrier();
    for (int i = 0; i < 50; ++i) shuffle_xor(i, 1);
    out[thread_index()] = tile[kThreads - 1 - thread_index()];
    if (kWithBarrier) barrier();
    for (int i = 0; i < 50; ++i) shuffle_xor(i, 1);
    tile[thread_index()] = 2;
  });
  return out == std::vector<int>(kThreads, 1);
}

TEST(missing_barrier_between_far_steps_is_caught_by_warps_that_run_ahead) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    CHECK(keeps_step<true>(seed));
    CHECK_EQUAL(keeps_step<false>(seed), seed == 0 || seed % 2 == 1);
  }
}

TEST(missing_barrier_before_an_overwrite_is_caught) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    CHECK(rotates<true>(seed));
    CHECK(!rotates<false>(seed));
  }
}

TEST(barrier_that_some_threads_skip_is_an_error) {
  const std::string error = error_of([] {
    if (thread_index() < 40) barrier();
  });
  CHECK(mentions(error, "40 threads wait at the barrier"));
  CHECK(mentions(error, "24 threads have returned"));
}

TEST(barriers_in_both_branches_are_an_error) {
  const std::string error = error_of([] {
    if (thread_index() < 32) {
      barrier();
    } else {
      barrier();
    }
  });
  CHECK(mentions(error, "stuck"));
}

TEST(shuffle_of_part_of_a_warp_is_an_error) {
  CHECK(mentions(error_of([] {
                   if (thread_index() != 5) shuffle_xor(1, 1);
                 }),
                 "31 threads wait at the shuffle"));
  CHECK_EQUAL(error_of([] {
                if (thread_index() < kWarp) shuffle_xor(1, 1);
              }),
              "");
}

TEST(shuffles_add_up_every_lane_in_any_order) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::vector<int> sums(kThreads, -1);
    host::launch(1, 1, kThreads, seed, [&] {
      int sum = thread_index();
      for (int mask = 1; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
      sums[thread_index()] = sum;
    });
    for (int i = 0; i < kThreads; ++i) CHECK_EQUAL(sums[i], i < kWarp ? 496 : 1520);
  }
}

TEST(ballots_count_every_lane_of_the_own_warp) {
  std::vector<unsigned> votes(kThreads);
  host::launch(1, 1, kThreads, 5, [&] { votes[thread_index()] = ballot(thread_index() % 3 == 0); });
  for (int i = 0; i < kThreads; ++i) CHECK_EQUAL(votes[i], i < kWarp ? 0x49249249u : 0x92492492u);
  CHECK_EQUAL(lowest_bit(0x50), 4);
}

TEST(shared_memory_is_nan_at_the_start_of_every_block) {
  std::vector<float> seen(3 * kThreads, 0.0f);
  host::launch(3, 1, kThreads, 7, [&] {
    SEED_FAST_SHARED(float, tile, [kThreads]);
    seen[block_index_x() * kThreads + thread_index()] = tile[thread_index()];
    tile[thread_index()] = 1;
  });
  for (float value : seen) CHECK(value != value);
}

TEST(exceptions_leave_a_kernel_and_the_next_launch_works) {
  bool thrown = false;
  try {
    host::launch(1, 1, kThreads, 0, [] {
      if (thread_index() == 3) throw std::out_of_range("from a kernel");
      barrier();
    });
  } catch (const std::out_of_range&) {
    thrown = true;
  }
  CHECK(thrown);
  CHECK(reverses<true>(1));
}

TEST(every_block_of_the_grid_runs) {
  std::vector<int> runs(6, 0);
  host::launch(3, 2, kThreads, 0, [&] {
    if (thread_index() == 0) ++runs[block_index_y() * 3 + block_index_x()];
  });
  CHECK(runs == std::vector<int>(6, 1));
}

TEST(rounding_up_to_float32_is_the_smallest_float32_not_below) {
  CHECK_EQUAL(float_round_up(1.0), 1.0f);
  CHECK_EQUAL(float_round_up(1.0 + 0x1p-40), 1.0f + 0x1p-23f);
  CHECK_EQUAL(float_round_up(-1.0 - 0x1p-40), -1.0f);
  CHECK_EQUAL(float_round_up(1e-300), 0x1p-149f);
  CHECK_EQUAL(float_round_up(1e300), infinity());
  CHECK(std::isnan(float_round_up(std::nan(""))));
}

}  // namespace

int main() { return check::run(); }
