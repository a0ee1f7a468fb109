# Finds CANN's runtime (ACL) and ATB, as their set_env.sh announce them:
#
#   ASCEND_HOME_PATH (or ASCEND_TOOLKIT_HOME)   the toolkit: include/acl, lib64/libascendcl.so
#   ATB_HOME_PATH                               NNAL's ATB, a directory cxx_abi_0 or cxx_abi_1: include/atb, lib/libatb.so
#
# Gives ATB_FOUND, ATB_VERSIONS (for people), ATB_HAS_LAUNCH_MODE (CANN 8.2 and later), and the target ATB::ATB, which
# carries the C++ ABI that the libraries were built with. Where something is missing, ATB_NOT_FOUND_MESSAGE says what, and
# which file to source.

include(FindPackageHandleStandardArgs)

set(_atb_problems "")

# Sets `variable` to the first of the environment variables that is set.
function(_atb_home variable script)
  foreach(name IN LISTS ARGN)
    if(DEFINED ENV{${name}} AND NOT "$ENV{${name}}" STREQUAL "")
      file(TO_CMAKE_PATH "$ENV{${name}}" home)
      set(${variable} "${home}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  list(JOIN ARGN " or " names)
  set(${variable} "" PARENT_SCOPE)
  set(_atb_problems "${_atb_problems}\n  ${names} is not set: source ${script}" PARENT_SCOPE)
endfunction()

set(_atb_cann_script /usr/local/Ascend/ascend-toolkit/set_env.sh)
set(_atb_script /usr/local/Ascend/nnal/atb/set_env.sh)
_atb_home(_atb_cann ${_atb_cann_script} ASCEND_HOME_PATH ASCEND_TOOLKIT_HOME)
_atb_home(_atb_home_path ${_atb_script} ATB_HOME_PATH)

# Nothing is cached: another environment is another installation.
function(_atb_require variable path package script)
  if(EXISTS "${path}")
    set(${variable} "${path}" PARENT_SCOPE)
  else()
    set(${variable} "" PARENT_SCOPE)
    set(_atb_problems "${_atb_problems}\n  ${path} does not exist: install ${package}, then source ${script}" PARENT_SCOPE)
  endif()
endfunction()

set(_atb_cann_header "")
set(_atb_cann_library "")
set(_atb_header "")
set(_atb_library "")
set(_atb_definition "")
if(_atb_cann)
  _atb_require(_atb_cann_header "${_atb_cann}/include/acl/acl.h" "the CANN toolkit" ${_atb_cann_script})
  _atb_require(_atb_cann_library "${_atb_cann}/lib64/libascendcl.so" "the CANN toolkit" ${_atb_cann_script})
endif()
if(_atb_home_path)
  _atb_require(_atb_header "${_atb_home_path}/include/atb/atb_infer.h" NNAL ${_atb_script})
  _atb_require(_atb_library "${_atb_home_path}/lib/libatb.so" NNAL ${_atb_script})
  if(_atb_home_path MATCHES "cxx_abi_([01])/?$")
    set(_atb_definition "_GLIBCXX_USE_CXX11_ABI=${CMAKE_MATCH_1}")
  else()
    set(_atb_problems "${_atb_problems}\n  ATB_HOME_PATH is ${_atb_home_path}, expected a directory cxx_abi_0 or cxx_abi_1: source ${_atb_script}")
  endif()
endif()

# "8.2.RC1", from the first of some files that names a version.
function(_atb_version variable)
  set(${variable} "unknown" PARENT_SCOPE)
  foreach(file IN LISTS ARGN)
    if(EXISTS "${file}")
      file(STRINGS "${file}" lines REGEX "[Vv]ersion|: *[0-9]+\\.")
      string(REGEX MATCH "[0-9]+\\.[0-9]+[A-Za-z0-9.]*" version "${lines}")
      if(version)
        set(${variable} "${version}" PARENT_SCOPE)
        return()
      endif()
    endif()
  endforeach()
endfunction()

if(_atb_cann AND _atb_home_path)
  file(GLOB _atb_info "${_atb_cann}/*/ascend_toolkit_install.info")
  _atb_version(_atb_cann_version ${_atb_info} "${_atb_cann}/version.cfg" "${_atb_cann}/compiler/version.info")
  get_filename_component(_atb_root "${_atb_home_path}/../.." ABSOLUTE)
  _atb_version(_atb_atb_version "${_atb_root}/version.info" "${_atb_home_path}/../version.info")
  set(ATB_VERSIONS "CANN ${_atb_cann_version}, ATB ${_atb_atb_version}")
endif()

set(ATB_NOT_FOUND_MESSAGE "${_atb_problems}")
find_package_handle_standard_args(ATB
  REQUIRED_VARS _atb_library _atb_header _atb_cann_library _atb_cann_header _atb_definition
  REASON_FAILURE_MESSAGE "${_atb_problems}")

if(ATB_FOUND)
  add_library(ATB::ATB INTERFACE IMPORTED GLOBAL)
  target_include_directories(ATB::ATB SYSTEM INTERFACE "${_atb_home_path}/include" "${_atb_cann}/include")
  target_compile_definitions(ATB::ATB INTERFACE ${_atb_definition})
  target_link_libraries(ATB::ATB INTERFACE "${_atb_library}" "${_atb_cann_library}")
  # What these libraries need themselves is found when the program starts, as set_env.sh arranges it.
  target_link_options(ATB::ATB INTERFACE "LINKER:--allow-shlib-undefined")

  # What came with a later release is asked of the headers, again each time.
  include(CheckCXXSourceCompiles)
  include(CMakePushCheckState)
  cmake_push_check_state(RESET)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  set(CMAKE_REQUIRED_LIBRARIES ATB::ATB)
  unset(ATB_HAS_LAUNCH_MODE CACHE)
  check_cxx_source_compiles("#include <atb/atb_infer.h>
    int use(atb::Context& context) { return context.SetLaunchMode(atb::GRAPH_LAUNCH_MODE); }" ATB_HAS_LAUNCH_MODE)
  unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
  cmake_pop_check_state()
endif()
