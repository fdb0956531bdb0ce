// A minimal test framework. A test file defines
//   TEST(name_of_the_behaviour) { CHECK(condition); CHECK_EQUAL(got, expected); }
// and ends with `int main() { return check::run(); }`. A failed check ends its test; the other tests still run.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

// Thrown by a failed CHECK; the message names file, line and condition.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*body)();
};

// All tests of the program, in the order of their definition.
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// Adds a test to the list when it is constructed, which happens before main.
struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// Runs every test and prints one line for each. Returns the exit status of main: 1 if a test failed or none exists.
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

// CHECK_EQUAL: throws Failure with both values unless got == expected. `text` is the source text of `got`.
template <class A, class B>
void equal(const A& got, const B& expected, const char* text, const char* file, int line) {
  if (got == expected) return;
  std::ostringstream message;
  message << file << ":" << line << ": " << text << ": expected " << expected << ", got " << got;
  throw Failure(message.str());
}

// CHECK: throws Failure unless the condition holds. `text` is the condition's source text.
inline void that(bool condition, const char* text, const char* file, int line) {
  if (!condition) throw Failure(std::string(file) + ":" + std::to_string(line) + ": not so: " + text);
}

}  // namespace check

#define TEST(name)                                                          \
  static void test_##name();                                                \
  static const check::Registration registration_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition) check::that(static_cast<bool>(condition), #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(got, expected) check::equal(got, expected, #got, __FILE__, __LINE__)
