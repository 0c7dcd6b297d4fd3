# cmake -DSOURCE=FOLDER -DOUTPUT=FILE -P write_build_info.cmake: writes FILE where the commit of FOLDER is not what it says.
set(ENV{GIT_OPTIONAL_LOCKS} 0)
execute_process(COMMAND git rev-parse --short=12 HEAD WORKING_DIRECTORY ${SOURCE}
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  set(commit unknown)
else()
  execute_process(COMMAND git diff-index --quiet HEAD -- WORKING_DIRECTORY ${SOURCE} ERROR_QUIET RESULT_VARIABLE changed)
  if(NOT changed EQUAL 0)
    string(APPEND commit "+changes")
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [[
#include "nibble/cli/build_info.h"

namespace nibble::cli {

std::string_view build_commit() { return "@commit@"; }

}  // namespace nibble::cli
]])
