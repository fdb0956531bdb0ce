// A PTX text, parsed: registers have become slots, labels indices of instructions, variables addresses.
//
// Everything that a warp can hold has a place known before it runs: a function cannot call itself, so each has slots
// and local memory of its own beside those of the kernels. A slot is room for 64 bits of each of 32 lanes; a predicate
// takes 32 bits of it, one a lane. Constants and special registers are slots too, so every operand of an instruction is
// one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;

// What is wrong with a PTX text, or with what a kernel did.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Space : uint8_t { generic, global, shared, local, param };

enum class Flow : uint8_t {
  next,
  branch,   // to `target`
  call,     // the same, and back
  leave,    // return to the caller, or end
  meet,     // waits for the lanes of the warp that the instruction names, then runs for all of them
  barrier,  // waits for the block
};

// Runs an instruction for the lanes in `active`.
using Execute = void (*)(Warp&, const Instruction&, uint32_t active);

struct Instruction {
  Execute execute = nullptr;
  Flow flow = Flow::next;
  Space space = Space::generic;
  bool negated = false;           // the guard
  bool settles = false;           // `execute` says which results are defined; else those of defined operands are
  bool from_text = true;          // false: one of the copies of arguments around a call
  int rounding = 0;               // fesetround's mode
  int16_t guard = -1;             // its place in `slots`, or -1
  int16_t written = 0, read = 0;  // slots[0 .. written) are results, the next `read` are operands
  int16_t needed = 0;             // of the operands, how many of the last must be defined: addresses, masks
  int16_t members = -1;           // where `slots` has the mask of lanes that meet, or -1: all of them
  uint8_t width = 0;              // bytes of one element in memory
  uint8_t options[3] = {};        // what else `execute` wants to know
  uint32_t target = 0;
  int64_t offset = 0;  // added to an address
  int line = 0;        // from 1
  std::vector<uint32_t> slots;
  std::vector<uint8_t> widths;  // bytes of the registers, as `slots`
};

// Slots of special registers, filled by the machine.
enum Special : uint32_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLane,
  kSpecials
};

struct Constant {
  uint32_t slot;
  uint64_t bits;
  int width;  // bytes; 0: a predicate
};

struct Parameter {
  std::string name;
  int64_t size, align, offset;
};

struct Function {
  std::string name;
  bool kernel = false;
  uint32_t begin = 0, end = 0;  // in Program::code
  uint32_t slots = 0;           // of the kernel, with those of all functions
  int64_t shared_bytes = 0;     // declared in the text
  int64_t local_bytes = 0;      // of a thread, with those of all functions
  int64_t most_threads = 1024;
  std::vector<Parameter> parameters;  // offsets: in the parameter space of a kernel, in the local memory of a function
  std::vector<Parameter> results;
  std::vector<Constant> constants;
};

struct Variable {  // .global or .const
  std::string name;
  std::vector<uint8_t> bytes;
  std::size_t padding;  // before the first byte, for alignment
  bool read_only;
};

struct Program {
  int architecture = 0;
  std::vector<Instruction> code;
  std::vector<bool> executed;  // as `code`; filled by the machine
  std::vector<Function> functions;
  std::vector<std::unique_ptr<Variable>> variables;
  std::vector<std::string> lines;  // of the text

  // Throws Fault for what it cannot read: the line, and why.
  static std::unique_ptr<Program> parse(const std::string& text);
  const Function& kernel(const std::string& name) const;
  const Function& function_at(uint32_t pc) const;
};

// -- between the parser and instructions*.cpp -------------------------------------------------------------------------

struct Argument {
  enum Kind { slot, number, vector, address, name, sink } kind = sink;
  uint32_t at = 0;      // slot
  int width = 0;        // of a register, bytes; 0: predicate
  uint64_t bits = 0;    // number
  int float_width = 0;  // number: 4 for 0f..., 8 for 0d..., 0 for an integer
  int64_t offset = 0;   // address
  bool negated = false;
  Space space = Space::generic;  // of the variable that an address names
  std::string text;              // name
  std::vector<Argument> parts;   // vector; address: its base
};

// One statement, and where its slots come from.
struct Statement {
  std::vector<std::string> opcode;  // split at dots
  std::vector<Argument> arguments;
  int line = 0;

  // The slot of a constant of the function that is being read.
  virtual uint32_t constant(uint64_t bits, int width) = 0;
  virtual ~Statement() = default;

  bool has(const char* part) const;
  [[noreturn]] void refuse(const std::string& why) const;
};

// Fills in everything but guard, target and line. Throws Fault for an instruction it does not know.
void decode(Statement& statement, Instruction& into);

}  // namespace ptx
