# Included by CMake after `project(llama.cpp)`: the tests use the library, not what its command-line programs share.
set(LLAMA_BUILD_COMMON OFF)
