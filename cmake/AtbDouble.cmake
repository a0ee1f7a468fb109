# Builds the test double of CANN and ATB, and makes it the installation that FindATB.cmake finds. This happens while the
# project is configured, because a library that is to be found must be there.

set(_double_source "${PROJECT_SOURCE_DIR}/tests/atb_double")
set(_double_build "${PROJECT_BINARY_DIR}/atb_double")

set(ATB_DOUBLE_RELEASE 850 CACHE STRING "CANN release that the test double stands for: 810, 820, 830, 850, 900 or 910")

file(GLOB_RECURSE _double_files CONFIGURE_DEPENDS "${_double_source}/*")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_double_files})

execute_process(COMMAND ${CMAKE_COMMAND} -S "${_double_source}" -B "${_double_build}" -G "${CMAKE_GENERATOR}"
                  "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}" "-DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}"
                  "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}"
                  "-DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER}"
                  "-DATB_DOUBLE_RELEASE=${ATB_DOUBLE_RELEASE}" "-DATB_DOUBLE_SANITIZERS=${LLM_BOOST_SANITIZERS}"
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build "${_double_build}" OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)

set(ENV{ASCEND_HOME_PATH} "${_double_build}/Ascend/ascend-toolkit/latest")
# Modules that are installed for tests find the double where it was built.
set(CMAKE_INSTALL_RPATH "$ENV{ASCEND_HOME_PATH}/lib64" "${_double_build}/Ascend/nnal/atb/latest/atb/cxx_abi_1/lib")
set(ENV{ATB_HOME_PATH} "${_double_build}/Ascend/nnal/atb/latest/atb/cxx_abi_1")
