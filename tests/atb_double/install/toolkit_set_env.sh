# Source this: the toolkit of this directory becomes the one in use.
_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
export ASCEND_HOME_PATH=$_root/latest ASCEND_TOOLKIT_HOME=$_root/latest
export LD_LIBRARY_PATH=$ASCEND_HOME_PATH/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
unset _root
