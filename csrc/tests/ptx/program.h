// A parsed PTX text, in which registers are numbered slots, labels are indices of instructions, and variables
// addresses.
//
// A slot holds 64 bits for each of the 32 lanes of a warp; a predicate takes only 32 bits of it, one per lane.
// Constants and special registers (%tid.x) are slots too, so every operand of an instruction is a slot. All slots and
// all local memory are allocated before a kernel runs: recursion is refused, so each function has its own, which every
// kernel includes.
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

// An error in a PTX text, or in what a kernel did.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Space : uint8_t { generic, global, shared, local, param };

// Where execution continues after an instruction.
enum class Flow : uint8_t {
  next,
  branch,   // at `target`
  call,     // at `target`, and after a `leave` behind this instruction
  leave,    // behind the call, or the thread ends
  meet,     // waits for the lanes of the warp that the instruction names; executes for all of them; then as `next`
  barrier,  // waits for all threads of the block
};

// Executes an instruction for the lanes of the mask `active`.
using Execute = void (*)(Warp&, const Instruction&, uint32_t active);

struct Instruction {
  Execute execute = nullptr;
  Flow flow = Flow::next;
  Space space = Space::generic;
  bool negated = false;           // the guard is negated: @!p
  bool settles = false;           // `execute` marks its results as defined; else the machine does, from the operands
  bool from_text = true;          // false: a copy of an argument, which the parser adds around a call
  int rounding = 0;               // rounding mode, as std::fesetround takes it
  int16_t guard = -1;             // index in `slots` of the guard predicate, or -1 for none
  int16_t written = 0, read = 0;  // slots[0 .. written) are results, the next `read` ones are operands
  int16_t needed = 0;             // how many of the last operands must be defined (addresses, masks)
  int16_t members = -1;           // index in `slots` of the mask of participating lanes, or -1 for all lanes
  uint8_t width = 0;              // bytes of one element in memory
  uint8_t options[3] = {};        // further settings; each `execute` documents its own
  uint32_t target = 0;            // index of the instruction at which a branch or call continues
  int64_t offset = 0;             // added to an address
  int line = 0;                   // of the PTX text, from 1
  std::vector<uint32_t> slots;
  std::vector<uint8_t> widths;  // bytes of the register in each of `slots`
};

// The first slots hold the special registers (%tid.x, ...), which the machine fills.
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

// A parameter or result of a kernel or function, in bytes.
struct Parameter {
  std::string name;
  int64_t size, align, offset;
};

struct Function {
  std::string name;
  bool kernel = false;
  uint32_t begin = 0, end = 0;        // its instructions in Program::code
  uint32_t slots = 0;                 // how many a warp needs, those of all functions included
  int64_t shared_bytes = 0;           // static shared memory
  int64_t local_bytes = 0;            // per thread, that of all functions included
  int64_t most_threads = 1024;        // per block (.maxntid)
  std::vector<Parameter> parameters;  // offsets in a kernel's parameter space, or in local memory for a function
  std::vector<Parameter> results;
  std::vector<Constant> constants;
};

// A .global or .const variable.
struct Variable {
  std::string name;
  std::vector<uint8_t> bytes;
  std::size_t padding;  // unused bytes at the beginning, for alignment
  bool read_only;
};

struct Program {
  int architecture = 0;
  std::vector<Instruction> code;
  std::vector<bool> executed;  // for each of `code`: some lane has executed it; set by the machine
  std::vector<Function> functions;
  std::vector<std::unique_ptr<Variable>> variables;
  std::vector<std::string> lines;  // of the PTX text

  // Throws Fault, with line and reason, for a text that it does not understand.
  static std::unique_ptr<Program> parse(const std::string& text);
  const Function& kernel(const std::string& name) const;
  const Function& function_at(uint32_t pc) const;
};

// -- between the parser and instructions*.cpp -------------------------------------------------------------------------

// One argument of a statement. Which fields are used depends on its kind.
struct Argument {
  enum Kind { slot, number, vector, address, name, sink } kind = sink;  // sink: `_`, a discarded result
  uint32_t at = 0;                                                      // slot: its number
  int width = 0;                                                        // slot: bytes of the register; 0: predicate
  uint64_t bits = 0;                                                    // number
  int float_width = 0;           // number: 4 for 0f..., 8 for 0d..., 0 for an integer
  int64_t offset = 0;            // address: what is added to its base
  bool negated = false;          // slot: !p
  Space space = Space::generic;  // address: the memory of the variable that it names
  std::string text;              // name: label or function
  std::vector<Argument> parts;   // vector: its elements; address: its base
};

// One statement of the text, as the parser hands it to a reader (instructions.h).
struct Statement {
  std::vector<std::string> opcode;  // split at dots
  std::vector<Argument> arguments;
  int line = 0;

  // The slot of a constant of `width` bytes in the function that is being parsed; a new one if necessary.
  virtual uint32_t constant(uint64_t bits, int width) = 0;
  virtual ~Statement() = default;

  // True if the opcode has this part, such as "sync" in bar.sync.
  bool has(const char* part) const;
  // Throws Fault with the line, the opcode and the reason.
  [[noreturn]] void refuse(const std::string& why) const;
};

// Fills in an instruction, except for guard, branch target and line. Throws Fault for an unknown instruction.
void decode(Statement& statement, Instruction& into);

}  // namespace ptx
