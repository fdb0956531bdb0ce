#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace seed_fast {
namespace {

struct Job {
  const std::function<void(int64_t)>* task;
  int64_t count;
  std::atomic<int64_t> next{0};

  void drain() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*task)(i);
  }
};

class Pool {
 public:
  // False when the pool is busy, and nothing ran.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> user(user_, std::try_to_lock);
    if (!user.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; started_ < helpers; ++started_) std::thread(&Pool::work, this, started_).detach();
      job_ = &job;
      wanted_ = helpers;
      running_.store(helpers, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job.drain();
    // The helpers are inside the last tasks, or about to look and find none: a short spin saves a sleep and a wake-up.
    if (!spin([&] { return running_.load(std::memory_order_acquire) == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [&] { return running_.load(std::memory_order_acquire) == 0; });
    }
    return true;
  }

 private:
  template <class Condition>
  static bool spin(const Condition& condition) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    do {
      if (condition()) return true;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < limit);
    return false;
  }

  void work(int index) {
    for (uint64_t seen = 0;;) {
      spin([&] { return generation_.load(std::memory_order_acquire) != seen; });
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (index < wanted_) job = job_;
      }
      if (job == nullptr) continue;
      job->drain();
      std::lock_guard<std::mutex> lock(mutex_);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.notify_one();
    }
  }

  std::mutex user_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  Job* job_ = nullptr;
  int wanted_ = 0;
  int started_ = 0;
};

// Never destroyed: detached threads may still look at it while the process exits.
std::atomic<Pool*> pool{nullptr};

Pool& get_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    // The child has none of the threads and perhaps a locked mutex: it leaks the old pool and starts afresh.
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
  });
  return *pool;
}

thread_local bool inside = false;

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task) {
  Job job{&task, count};
  const int64_t helpers = (threads < count ? threads : count) - 1;
  if (helpers < 1 || inside) return job.drain();
  inside = true;
  if (!get_pool().run(job, int(helpers))) job.drain();
  inside = false;
}

}  // namespace seed_fast
