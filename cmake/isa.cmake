# Instruction sets by file name. Everything is compiled for x86-64-v2; a file whose name ends in one of the suffixes
# below gets more, and the kernels choose at run time (cpu_features.h). Where the compiler does not define __x86_64__
# those files are left out.
include(CheckCXXCompilerFlag)

set(isa_flags_avx2 -mavx2 -mfma -mf16c)
set(isa_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
set(isa_flags_avx512bf16 ${isa_flags_avx512} -mavx512bf16)
set(isa_flags_avx512vnni ${isa_flags_avx512} -mavx512vnni)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(x86_kernels ON)
  check_cxx_compiler_flag(-march=x86-64-v2 HAVE_MARCH_X86_64_V2)
  if(HAVE_MARCH_X86_64_V2)
    add_compile_options(-march=x86-64-v2)
  elseif(SEED_FAST_ZIG)
    add_compile_options(-march=x86_64_v2) # zig spells it so
  else()
    add_compile_options(-mssse3 -msse4.1 -msse4.2 -mpopcnt -mcx16) # the same, for compilers before the name
  endif()
else()
  set(x86_kernels OFF)
endif()

# Adds files to a target, each with the flags of its suffix.
function(seed_fast_add_cpu_sources target)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "_(avx[0-9a-z]+)\\.cpp$")
      if(NOT x86_kernels)
        continue()
      endif()
      if(NOT DEFINED isa_flags_${CMAKE_MATCH_1})
        message(FATAL_ERROR "${source}: no flags for ${CMAKE_MATCH_1} in cmake/isa.cmake")
      endif()
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${isa_flags_${CMAKE_MATCH_1}}")
    endif()
    target_sources(${target} PRIVATE ${source})
  endforeach()
endfunction()
