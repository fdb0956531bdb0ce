// A stand-in for the CUDA runtime: the calls that the launchers of csrc/cuda make, implemented by the interpreter. The
// launchers are linked against it in place of libcudart, so tests run the real launch code with its grids, blocks and
// arguments. A launch runs to its end within the call; a Fault leaves it as an exception.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "machine.h"

namespace ptx {

// The PTX of one csrc/cuda/*.cu, by architecture.
struct DeviceImage {
  std::string source;
  std::map<int, std::string> texts;
  std::map<int, std::unique_ptr<Program>> programs;  // parsed at the first request

  void replace(int architecture, const std::string& text);
  // The program of the newest architecture that is not newer than this one, as the driver chooses.
  Program& program_for(int architecture);
};

// The one interpreter of the process.
Machine& machine();
// All images by source without ".cu", read from the folder that CMake has filled.
std::map<std::string, DeviceImage>& images();
// The architecture of the one device that launchers see: 70, 75 or 80.
void set_architecture(int architecture);

}  // namespace ptx
