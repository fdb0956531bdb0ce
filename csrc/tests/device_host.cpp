#include "device_host.h"

#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SEED_FAST_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SEED_FAST_ASAN 1
#endif
#ifdef SEED_FAST_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace seed_fast::device::host {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;  // per fiber; AddressSanitizer makes stack frames large
constexpr std::size_t kSlotBytes = 8;           // the largest value that a lane can pass in a shuffle

// AddressSanitizer has to be told of every switch to another stack: before_switch on the old stack, after_switch on the
// new one. Without it both do nothing.
void before_switch(void** own_fake_stack, const void* bottom, std::size_t size) {
#ifdef SEED_FAST_ASAN
  __sanitizer_start_switch_fiber(own_fake_stack, bottom, size);
#else
  (void)own_fake_stack, (void)bottom, (void)size;
#endif
}
void after_switch(void* own_fake_stack, const void** from_bottom, std::size_t* from_size) {
#ifdef SEED_FAST_ASAN
  __sanitizer_finish_switch_fiber(own_fake_stack, from_bottom, from_size);
#else
  (void)own_fake_stack, (void)from_bottom, (void)from_size;
#endif
}

enum class State { ready, at_barrier, at_shuffle, at_product, returned };

// One thread of the block: its stack, and what it waits for.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;
  State state = State::ready;
  int line = 0;  // of the call at which it waits
  // How many shuffles and products it has executed. They alternate between two sets of slots (count % 2), so that a
  // lane that is one shuffle ahead doesn't overwrite a value that a slower lane has still to read.
  int shuffles = 0, products = 0;
};

// Where the lanes of a warp leave their values for each other: shuffled values, fragments of matrix products.
struct Warp {
  unsigned char slots[2][kWarp][kSlotBytes];
  Fragment fragments[2][kWarp];
};

// One launch: its blocks run one after another on the same fibers. A scheduler picks a ready fiber, lets it run until
// it waits or returns, and makes waiting fibers ready again once all that they wait for have arrived.
class Launch {
 public:
  Launch(int threads, unsigned seed, const std::function<void()>& kernel)
      : fibers_(static_cast<std::size_t>(threads)),
        warps_(static_cast<std::size_t>(threads / kWarp)),
        kernel_(kernel),
        random_(seed),
        shuffled_(seed % 2 != 0),
        ahead_(seed != 0 && seed % 2 == 0),
        priorities_(warps_.size()) {
    std::iota(priorities_.begin(), priorities_.end(), 0);
  }

  // Runs all threads of block (x, y) to their end. Throws KernelError if the remaining threads wait for ever.
  void run_block(int x, int y) {
    // Start every thread anew, with fresh shared memory and, with an even seed, a new order of warps.
    block_x = x;
    block_y = y;
    shared_.clear();
    ready_.clear();
    std::shuffle(priorities_.begin(), priorities_.end(), random_);
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      prepare(fibers_[i]);
      make_ready(static_cast<int>(i));
    }
    // Run one ready thread at a time.
    for (std::size_t returned = 0; returned < fibers_.size();) {
      if (ready_.empty()) throw KernelError(describe_stall());
      thread = take_ready();
      resume(fibers_[static_cast<std::size_t>(thread)]);
      if (failure_) std::rethrow_exception(failure_);
      returned += fibers_[static_cast<std::size_t>(thread)].state == State::returned;
    }
  }

  void enter_shared(void* address, std::size_t bytes) {
    if (std::find(shared_.begin(), shared_.end(), address) != shared_.end()) return;
    std::memset(address, 0xff, bytes);  // NaN, as floats
    shared_.push_back(address);
  }

  void wait_for_block(int line) { wait(State::at_barrier, line, 0, static_cast<int>(fibers_.size())); }

  void exchange(const void* mine, void* theirs, std::size_t bytes, int mask, int line) {
    if (bytes > kSlotBytes) throw KernelError("shuffle of more than 8 bytes");
    const int lane = thread % kWarp;
    auto& slots = warps_[static_cast<std::size_t>(thread / kWarp)].slots[current().shuffles++ % 2];
    std::memcpy(slots[lane], mine, bytes);
    wait(State::at_shuffle, line, thread / kWarp * kWarp, kWarp);
    std::memcpy(theirs, slots[(lane ^ mask) % kWarp], bytes);
  }

  void multiply_matrices(Fragment& mine, void (*compute)(Fragment*), int line) {
    auto& lanes = warps_[static_cast<std::size_t>(thread / kWarp)].fragments[current().products++ % 2];
    const int lane = thread % kWarp;
    lanes[lane] = mine;
    wait(State::at_product, line, thread / kWarp * kWarp, kWarp, [&] { compute(lanes); });
    mine = lanes[lane];
  }

  int thread = 0, block_x = 0, block_y = 0;

 private:
  static void start();

  void prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &main_;
    fiber.shuffles = fiber.products = 0;
    fiber.fake_stack = nullptr;
    makecontext(&fiber.context, &Launch::start, 0);
  }

  Fiber& current() { return fibers_[static_cast<std::size_t>(thread)]; }

  void make_ready(int index) {
    fibers_[static_cast<std::size_t>(index)].state = State::ready;
    ready_.push_back(index);
  }

  // Removes and returns the thread that runs next, in the order that the seed asks for (see `launch`).
  int take_ready() {
    auto pick = ready_.begin();
    if (shuffled_) pick += static_cast<std::ptrdiff_t>(random_() % ready_.size());
    if (ahead_) {
      const auto priority = [&](int index) { return priorities_[static_cast<std::size_t>(index / kWarp)]; };
      pick = std::min_element(ready_.begin(), ready_.end(), [&](int a, int b) { return priority(a) < priority(b); });
    }
    const int index = *pick;
    ready_.erase(pick);
    return index;
  }

  // Suspends the running fiber until all of [first, first + count) wait in this state at this line; the last to arrive
  // executes `work` for all of them.
  void wait(State state, int line, int first, int count, const std::function<void()>& work = [] {}) {
    Fiber& self = current();
    self.state = state;
    self.line = line;
    const auto begin = fibers_.begin() + first, end = begin + count;
    if (std::all_of(begin, end, [&](const Fiber& f) { return f.state == state && f.line == line; })) {
      work();
      for (int i = first; i < first + count; ++i) make_ready(i);
    }
    before_switch(&self.fake_stack, main_bottom_, main_size_);
    swapcontext(&self.context, &main_);
    after_switch(self.fake_stack, &main_bottom_, &main_size_);
  }

  // Switches from the scheduler to the fiber; returns when the fiber waits or ends.
  void resume(Fiber& fiber) {
    before_switch(&main_fake_stack_, fiber.stack.get(), kStackBytes);
    swapcontext(&main_, &fiber.context);
    after_switch(main_fake_stack_, nullptr, nullptr);
  }

  // The message of a deadlock: how many threads wait at which line, or have returned.
  std::string describe_stall() const {
    std::map<std::string, int> where;
    for (const Fiber& fiber : fibers_) {
      ++where[fiber.state == State::returned     ? "have returned"
              : fiber.state == State::at_barrier ? "wait at the barrier in line " + std::to_string(fiber.line)
              : fiber.state == State::at_shuffle ? "wait at the shuffle in line " + std::to_string(fiber.line)
                                                 : "wait at the matrix product in line " + std::to_string(fiber.line)];
    }
    std::string text = "block (" + std::to_string(block_x) + ", " + std::to_string(block_y) + ") is stuck:";
    for (const auto& [what, count] : where) text += " " + std::to_string(count) + " threads " + what + ";";
    return text;
  }

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  const std::function<void()>& kernel_;
  std::mt19937 random_;
  const bool shuffled_, ahead_;  // odd and even seeds
  std::vector<int> priorities_;  // per warp: with an even seed, ready threads of the lowest number run first
  std::vector<int> ready_;       // threads that could run
  std::vector<void*> shared_;    // shared arrays that the block has already filled with NaN
  std::exception_ptr failure_;   // what the kernel threw
  ucontext_t main_;              // the scheduler
  void* main_fake_stack_ = nullptr;
  const void* main_bottom_ = nullptr;
  std::size_t main_size_ = 0;
};

Launch* running = nullptr;  // the launch in progress, or null

// Entry point of every fiber. An exception must not leave the fiber's stack, so it is kept for run_block to rethrow.
void Launch::start() {
  Launch& launch = *running;
  after_switch(nullptr, &launch.main_bottom_, &launch.main_size_);
  try {
    launch.kernel_();
  } catch (...) {
    launch.failure_ = std::current_exception();
  }
  launch.current().state = State::returned;
  before_switch(nullptr, launch.main_bottom_, launch.main_size_);  // returning leads to main_ (uc_link)
}

}  // namespace

void launch(int grid_x, int grid_y, int threads, unsigned seed, const std::function<void()>& kernel) {
  if (running) throw KernelError("launch inside a kernel");
  if (threads < kWarp || threads % kWarp) throw KernelError("a block needs whole warps");
  Launch launch(threads, seed, kernel);
  struct Guard {
    ~Guard() { running = nullptr; }
  } guard;
  running = &launch;
  for (int y = 0; y < grid_y; ++y) {
    for (int x = 0; x < grid_x; ++x) launch.run_block(x, y);
  }
}

int thread_index() { return running->thread; }
int block_index_x() { return running->block_x; }
int block_index_y() { return running->block_y; }
void enter_shared(void* address, std::size_t bytes) { running->enter_shared(address, bytes); }
void wait_for_block(int line) { running->wait_for_block(line); }
void exchange(const void* mine, void* theirs, std::size_t bytes, int mask, int line) {
  running->exchange(mine, theirs, bytes, mask, line);
}
void multiply_matrices(Fragment& mine, void (*compute)(Fragment*), int line) {
  running->multiply_matrices(mine, compute, line);
}

}  // namespace seed_fast::device::host
