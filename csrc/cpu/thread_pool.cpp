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

// One call of parallel_for. Threads take the next index from a counter until none is left.
struct Job {
  const std::function<void(int64_t)>* task;
  int64_t count;
  std::atomic<int64_t> next{0};

  void drain() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*task)(i);
  }
};

// Threads that sleep until there is a job. They are started when they are first needed, and never end.
class Pool {
 public:
  // Runs the job on the calling thread and on `helpers` others. Returns false, without running anything, if another
  // thread is using the pool.
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
    // The helpers are executing the last tasks or about to find none left, so spinning briefly usually avoids a sleep.
    if (!spin([&] { return running_.load(std::memory_order_acquire) == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [&] { return running_.load(std::memory_order_acquire) == 0; });
    }
    return true;
  }

 private:
  // Waits for the condition, at most 20 microseconds; returns whether it holds.
  template <class Condition>
  static bool spin(const Condition& condition) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    do {
      if (condition()) return true;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < limit);
    return false;
  }

  // The loop of helper `index`: wait for the next generation, take part if the job wants that many helpers.
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

  std::mutex user_;   // held by the thread that uses the pool
  std::mutex mutex_;  // protects what follows
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};  // counts jobs
  std::atomic<int> running_{0};          // helpers that have not finished the job
  Job* job_ = nullptr;
  int wanted_ = 0;   // helpers of the job
  int started_ = 0;  // threads that exist
};

// Never destroyed, because detached threads may still access it while the process exits.
std::atomic<Pool*> pool{nullptr};

Pool& get_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    // After fork() the child has none of the threads, and a mutex may be locked: so it abandons the pool for a new one.
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
  });
  return *pool;
}

thread_local bool inside = false;  // this thread is in parallel_for; a call from its tasks runs in the same thread

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
