# Source this, after the toolkit's: the ATB of this directory becomes the one in use.
_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
export ATB_HOME_PATH=$_root/latest/atb/cxx_abi_1
export LD_LIBRARY_PATH=$ATB_HOME_PATH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
unset _root
