// A test framework in a page. TEST(what_it_pins) { CHECK(condition); CHECK_EQUAL(got, expected); } and, at the end of
// the file, `int main() { return check::run(); }`. A failed check ends its test; the others still run.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// Exit status for main.
inline int run() {
  int failed = 0;
  for (const Test& test : tests()) {
    std::string problem;
    try {
      test.body();
    } catch (const std::exception& error) {
      problem = error.what();
      ++failed;
    }
    std::printf("%s %s%s%s\n", problem.empty() ? "ok    " : "FAILED", test.name, problem.empty() ? "" : ": ",
                problem.c_str());
    std::fflush(stdout);
  }
  std::printf("%zu tests, %d failed\n", tests().size(), failed);
  return failed || tests().empty() ? 1 : 0;
}

template <class A, class B>
void equal(const A& got, const B& expected, const char* text, const char* file, int line) {
  if (got == expected) return;
  std::ostringstream message;
  message << file << ":" << line << ": " << text << ": expected " << expected << ", got " << got;
  throw Failure(message.str());
}

inline void that(bool condition, const char* text, const char* file, int line) {
  if (!condition) throw Failure(std::string(file) + ":" + std::to_string(line) + ": not so: " + text);
}

}  // namespace check

#define TEST(name)                                                     \
  static void test_##name();                                           \
  static const check::Registration registration_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition) check::that(static_cast<bool>(condition), #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(got, expected) check::equal(got, expected, #got, __FILE__, __LINE__)
