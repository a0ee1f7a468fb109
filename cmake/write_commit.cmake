# Writes HEADER with the commit that SOURCE_DIR is at, "-dirty" when files differ from it, or "unknown" outside a
# repository. Runs at every build; the header changes only when the commit does.
find_package(Git QUIET)
set(commit "unknown")
if(GIT_FOUND AND EXISTS "${SOURCE_DIR}/.git")
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit "${described}")
  endif()
endif()
set(text "#pragma once\n#define LLM_BOOST_COMMIT \"${commit}\"\n")
if(EXISTS ${HEADER})
  file(READ ${HEADER} old)
endif()
if(NOT "${text}" STREQUAL "${old}")
  file(WRITE ${HEADER} "${text}")
endif()
