// The parts of nearest_code on CUDA: the packed codebook, the score bounds of its screens, the merging of partial
// results, and the plan of a search.
#include "nearest_code_cuda_harness.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::nearest_code;
using namespace seed_fast::nearest_code::testing;

TEST(largest_norm_is_found_wherever_it_is) {
  const Matrix z = random_matrix(1, 8, 73);
  for (int k : {0, 31, 77, 128, 299}) {
    Matrix codes = random_matrix(300, 8, 74);
    codes.set(k, 5, 1000);
    const float largest = device::float_from_bits(~search(z, codes).header().max_norm_bits);
    double norm = 0;
    for (int d = 0; d < 8; ++d) norm += static_cast<double>(codes(k, d)) * codes(k, d);
    CHECK(largest >= norm && std::nextafter(largest, 0.0f) < norm);
  }
}

TEST(an_entry_that_equals_an_earlier_one_is_left_out) {
  Matrix codes = random_matrix(300, 32, 75);
  for (int d = 0; d < 32; ++d) codes.set(290, d, codes(17, d)), codes.set(40, d, 0.0f), codes.set(41, d, -0.0f);
  const std::vector<unsigned char> packed = pack(codes);
  const Codes all(packed.data(), 300, 32);
  for (int k = 0; k < 300; ++k) CHECK_EQUAL(all.start[k] == -kInf, k == 290 || k == 41);
}

TEST(the_centre_is_inside_the_codebook_even_with_entries_far_away) {
  Matrix codes = random_matrix(300, 8, 76, 0.01f);
  for (int k = 0; k < 300; ++k) {
    for (int d = 0; d < 8; ++d) codes.set(k, d, codes(k, d) + (k % 10 == 3 ? 1e6f : 50.0f));
  }
  const std::vector<unsigned char> packed = pack(codes);
  const Codes all(packed.data(), 300, 8);
  for (int d = 0; d < 8; ++d) CHECK(std::abs(all.center[d] - 50) < 0.01);
  for (int d = 8; d < 32; ++d) CHECK_EQUAL(all.center[d], 0.0f);
}

TEST(every_code_has_its_own_place) {
  for (int fragments : {kSm70, kSm75}) {
    std::vector<int> taken(kTileCodes, 0);
    for (int code = 0; code < kTileCodes; ++code) {
      CHECK_EQUAL(code_of(group_of(code + 256), member_of(code + 256)), code + 256);
      ++taken[position_of(code, fragments)];
    }
    CHECK(taken == std::vector<int>(kTileCodes, 1));
  }
}

// Runs the binary16 screen and checks for every row that its bounds of the best score and of the two best groups
// enclose the exact scores, and that the bounds of the best score are close to each other.
void check_bounds(const Matrix& z, const Matrix& codes, Options options) {
  const Search done = search(z, codes, options);
  const Codes all(done.packed.data(), codes.rows, codes.columns);
  const auto exact = [&](int row, int code) {  // z'.e' - ||e'||^2 / 2
    double score = 0;
    for (int d = 0; d < z.columns; ++d) {
      const double e = static_cast<double>(codes(code, d)) - all.center[d];
      score += e * (static_cast<double>(z(row, d)) - all.center[d] - 0.5 * e);
    }
    return score;
  };
  for (int row = 0; row < z.rows; ++row) {
    const Partial& found = done.half[row];
    double best = -kInf;
    for (int k = 0; k < codes.rows; ++k) best = std::max(best, exact(row, k));
    CHECK(found.lower <= best);
    CHECK(found.upper[0] >= best);
    CHECK(found.upper[0] - found.lower < 0.01 * magnitude64(z, row, codes));
    for (int i = 0; i < 2; ++i) {
      for (int member = 0; member < kGroup; ++member) {
        const int code = code_of(found.group[i], member);
        if (code < codes.rows) CHECK(found.upper[i] >= exact(row, code));
      }
    }
  }
}

TEST(screens_keep_to_the_stated_bound) {
  for (Cores cores : {Cores::sm70, Cores::sm75, Cores::sm80}) {
    for (int d : {8, 40}) {
      check_bounds(random_matrix(64, d, 81), random_matrix(256, d, 82), {cores, 1, 0});
      check_bounds(random_matrix(20, d, 83, 1e-6f), random_matrix(256, d, 84, 1e3f), {cores, 1, 0});
    }
  }
}

bool equal(const Partial& a, const Partial& b) {
  const bool uppers = a.upper[0] == b.upper[0] && a.upper[1] == b.upper[1] && a.upper[2] == b.upper[2];
  return a.lower == b.lower && uppers && a.group[0] == b.group[0] && a.group[1] == b.group[1];
}

// One partial result for each of `count` groups, with so few different bounds that most of them tie.
std::vector<Partial> tied_groups(std::mt19937& random, int count) {
  std::vector<Partial> groups;
  for (int group = 0; group < count; ++group) {
    Partial one = nothing();
    const float score = random() % 8 == 0 ? -kInf : static_cast<float>(random() % 3);
    keep_next(one, score, static_cast<float>(random() % 2), group);
    groups.push_back(one);
  }
  return groups;
}

TEST(merging_partial_results_commutes_and_associates) {
  std::mt19937 random(85);
  for (int trial = 0; trial < 20000; ++trial) {
    Partial parts[3] = {nothing(), nothing(), nothing()};
    for (const Partial& group : tied_groups(random, 1 + static_cast<int>(random() % 9))) {
      merge(parts[random() % 3], group);
    }
    Partial ab = parts[0], ba = parts[1], bc = parts[1];
    merge(ab, parts[1]), merge(ba, parts[0]), merge(bc, parts[2]);
    CHECK(equal(ab, ba));
    Partial left = ab, right = parts[0];
    merge(left, parts[2]), merge(right, bc);
    CHECK(equal(left, right));
  }
}

TEST(partial_results_are_the_best_groups_by_bound_then_index) {
  std::mt19937 random(86);
  for (int trial = 0; trial < 5000; ++trial) {
    std::vector<Partial> groups = tied_groups(random, 3 + static_cast<int>(random() % 7));
    std::vector<std::pair<float, int>> sorted;  // by (-bound, index)
    Partial in_order = nothing(), shuffled = nothing();
    for (const Partial& group : groups) {
      if (group.group[0] != kNoGroup) sorted.push_back({-group.upper[0], group.group[0]});
      keep_next(in_order, group.upper[0], 0, group.group[0]);
      in_order.lower = std::max(in_order.lower, group.lower);
    }
    std::sort(sorted.begin(), sorted.end());
    std::shuffle(groups.begin(), groups.end(), random);
    shuffled = nothing();
    for (const Partial& group : groups) merge(shuffled, group);
    for (std::size_t i = 0; i < 3 && i < sorted.size(); ++i) {
      CHECK_EQUAL(shuffled.upper[i], -sorted[i].first);
      if (i < 2) CHECK_EQUAL(shuffled.group[i], sorted[i].second);
    }
    for (int i = 0; i < 2; ++i) CHECK_EQUAL(in_order.group[i], shuffled.group[i]);
  }
}

// Each lane of a warp merges groups of its own; after a butterfly of shuffles all 32 lanes hold the same result.
TEST(all_lanes_merge_to_one_result) {
  std::mt19937 random(87);
  for (int trial = 0; trial < 20; ++trial) {
    const std::vector<Partial> groups = tied_groups(random, 200);
    std::vector<Partial> merged_by_lane(device::kWarp);
    device::host::launch(1, 1, device::kWarp, 0, [&] {
      const int lane = device::thread_index();
      Partial found = nothing();
      for (std::size_t i = static_cast<std::size_t>(lane); i < groups.size(); i += device::kWarp)
        merge(found, groups[i]);
      for (int mask = 1; mask < device::kWarp; mask *= 2) merge(found, shuffle_partial(found, mask));
      merged_by_lane[static_cast<std::size_t>(lane)] = found;
    });
    for (const Partial& found : merged_by_lane) CHECK(equal(found, merged_by_lane[0]));
  }
}

TEST(plan_and_workspace_cover_every_search_within_linear_memory) {
  for (long long n : {1ll, 32ll, 65ll, 256ll, 8192ll, 65536ll, 1ll << 31}) {
    for (int k : {1, 128, 129, 8192, 1 << 20}) {
      for (int wanted : {1, 960, 1776}) {
        const Plan plan(n, k, wanted);
        const Workspace workspace(n, wanted);
        CHECK(static_cast<long long>(plan.shares) * plan.tiles_per_block >= code_tiles(k));
        CHECK(static_cast<long long>(plan.shares - 1) * plan.tiles_per_block < code_tiles(k));
        CHECK(plan.row_blocks * kBlockRows >= n);
        CHECK(plan.blocks() <= workspace.blocks);
        CHECK(workspace.partials + plan.shares * n * static_cast<long long>(sizeof(Partial)) <= workspace.bytes);
        CHECK(workspace.bytes <= 64 + 28 * n + 64 * 24 * (wanted + 1));
      }
    }
  }
  CHECK_EQUAL(Plan(0, 8192, 960).blocks(), 0);
}

}  // namespace

int main() { return check::run(); }
