# Toolchain of the release wheels: the zig compiler from PyPI, against the glibc of manylinux_2_28. A recent Debian's
# g++ would tie the module to that Debian's glibc. setup.py passes SEED_FAST_ZIG, the path of the zig executable.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SEED_FAST_ZIG)
set(SEED_FAST_ZIG_TARGET x86_64-linux-gnu.2.28)
set(CMAKE_CXX_COMPILER "${SEED_FAST_ZIG}" c++ -target ${SEED_FAST_ZIG_TARGET})
