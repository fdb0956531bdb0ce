// Runs a few lines of PTX as a kernel with two arrays of 64-bit elements, `in` and `out`, one element per thread.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "machine.h"

namespace ptx::testing {

struct Snippet {
  std::string declarations;  // further variables and registers, in addition to those of text_of
  std::string body;
  unsigned threads = 32, blocks = 1;
  unsigned seed = 1;
  Arithmetic arithmetic = Arithmetic::exact;
};

// The PTX text of the kernel. Before the body it sets %rd1 to the address of the thread's element of `in`, %rd2 to that
// of `out`, %r0 to the thread's index and %r9 to its lane.
inline std::string text_of(const Snippet& snippet) {
  return ".version 8.8\n.target sm_80\n.address_size 64\n"
         ".visible .entry snippet(.param .u64 in, .param .u64 out)\n{\n"
         ".reg .pred %p<10>;\n.reg .b16 %h<10>;\n.reg .b32 %r<40>;\n.reg .f32 %f<40>;\n.reg .b64 %rd<10>;\n.reg .f64 "
         "%d<10>;\n" +
         snippet.declarations +
         "mov.u32 %r0, %tid.x;\nmov.u32 %r9, %laneid;\n"
         "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmad.lo.s32 %r3, %r1, %r2, %r0;\n"
         "ld.param.u64 %rd1, [in];\nld.param.u64 %rd2, [out];\nmul.wide.u32 %rd3, %r3, 8;\n"
         "add.s64 %rd1, %rd1, %rd3;\nadd.s64 %rd2, %rd2, %rd3;\n" +
         snippet.body + "\nret;\n}\n";
}

// Runs the kernel and returns `out`. A shorter `in` is extended with its last element.
inline std::vector<uint64_t> run(const Snippet& snippet, std::vector<uint64_t> in = {}) {
  const std::size_t count = std::size_t(snippet.threads) * snippet.blocks;
  in.resize(count, in.empty() ? 0 : in.back());
  std::vector<uint64_t> out(count, 0);
  Machine machine;
  machine.settings = {snippet.seed, snippet.arithmetic, false};
  const auto add = [&](std::vector<uint64_t>& array, const char* name, bool read_only) {
    Segment segment;
    segment.name = name, segment.base = reinterpret_cast<uint64_t>(array.data()), segment.size = 8 * count;
    segment.bytes = reinterpret_cast<uint8_t*>(array.data());
    segment.read_only = read_only, segment.watched = true;
    machine.memory.add(std::move(segment));
  };
  add(in, "in", true);
  add(out, "out", false);
  std::vector<uint8_t> parameters(16);
  const uint64_t addresses[] = {reinterpret_cast<uint64_t>(in.data()), reinterpret_cast<uint64_t>(out.data())};
  std::memcpy(parameters.data(), addresses, 16);
  const auto program = Program::parse(text_of(snippet));
  machine.launch(*program, "snippet", {snippet.blocks, 1, 1}, {snippet.threads, 1, 1}, 0, parameters);
  return out;
}

// The message of the Fault that `what` throws; "" if it throws none.
inline std::string fault_of(const std::function<void()>& what) {
  try {
    what();
  } catch (const Fault& fault) {
    return fault.what();
  }
  return "";
}

inline std::string fault(const Snippet& snippet) {
  return fault_of([&] { run(snippet); });
}

}  // namespace ptx::testing

// Fails unless the message contains `expected`.
#define CHECK_FAULT(message, expected) ptx::testing::check_fault(message, expected, __FILE__, __LINE__)

namespace ptx::testing {
inline void check_fault(const std::string& message, const std::string& expected, const char* file, int line) {
  if (message.find(expected) != std::string::npos) return;
  throw check::Failure(std::string(file) + ":" + std::to_string(line) + ": expected a fault \"" + expected +
                       "\", got \"" + message + "\"");
}
}  // namespace ptx::testing
