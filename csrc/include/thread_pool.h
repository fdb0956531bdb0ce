// One pool of std::threads for every CPU kernel. No OpenMP: a forked worker would hang in its runtime, and two of them
// in one process fight over the cores.
#pragma once

#include <cstdint>
#include <functional>

namespace seed_fast {

// Runs task(0) .. task(count - 1) on up to `threads` threads, the caller among them, and returns when all are done.
// Tasks may run in any order and must not throw. A child process starts with an empty pool of its own after fork();
// a call from inside a task, or while another thread uses the pool, runs in the calling thread.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task);

}  // namespace seed_fast
